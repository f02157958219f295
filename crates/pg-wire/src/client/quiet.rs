//! A Unix socket that wakes its owner for what arrives, and for room only while room is waited for.
//!
//! Linux says that there is room each time the other side has read something (`unix_write_space` in `net/unix/af_unix.c`),
//! and tokio's own type always listens for it. Who streams WAL would be woken a second time for each answer, just when the
//! commit that was let go wants the processor. TCP says so only to who was told that there was none.

use std::io::{self, Write};
use std::net::Shutdown;
use std::os::unix::net::UnixStream;
use std::pin::Pin;
use std::task::{Context, Poll, ready};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::unix::pipe;

#[derive(Debug)]
pub(super) struct QuietUnix {
    socket: UnixStream,
    /// The same socket. What reads a pipe listens for what arrives, and for nothing else.
    arrivals: pipe::Receiver,
    /// The same socket, while it is waited for room.
    room: Option<tokio::net::UnixStream>,
}

impl QuietUnix {
    /// To be called where the socket is used: in a runtime.
    pub(super) fn new(stream: tokio::net::UnixStream) -> io::Result<Self> {
        let socket = stream.into_std()?;
        let arrivals = pipe::Receiver::from_owned_fd_unchecked(socket.try_clone()?.into())?;
        Ok(Self { socket, arrivals, room: None })
    }
}

impl AsyncRead for QuietUnix {
    fn poll_read(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.arrivals).poll_read(cx, buf)
    }
}

impl AsyncWrite for QuietUnix {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, data: &[u8]) -> Poll<io::Result<usize>> {
        loop {
            if let Some(room) = &mut self.room {
                let done = ready!(Pin::new(room).poll_write(cx, data));
                self.room = None;
                return Poll::Ready(done);
            }
            match self.socket.write(data) {
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                    self.room = Some(tokio::net::UnixStream::from_std(self.socket.try_clone()?)?);
                }
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                done => return Poll::Ready(done),
            }
        }
    }

    fn poll_flush(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }

    fn poll_shutdown(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(self.socket.shutdown(Shutdown::Write))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::future::poll_fn;
    use std::time::Duration;
    use tokio::io::{AsyncReadExt, AsyncWriteExt};

    fn pair() -> (QuietUnix, tokio::net::UnixStream) {
        let (ours, theirs) = tokio::net::UnixStream::pair().unwrap();
        (QuietUnix::new(ours).unwrap(), theirs)
    }

    #[tokio::test]
    async fn more_than_there_is_room_for_goes_both_ways_at_once() {
        let (mut ours, theirs) = pair();
        let sent: Vec<u8> = (0..4_000_000u32).map(|n| (n.wrapping_mul(2_654_435_761) >> 24) as u8).collect();
        let (mut read, mut write) = theirs.into_split();
        let back = sent.clone();
        let writer = tokio::spawn(async move { write.write_all(&back).await.map(|()| write) });
        // Nobody reads yet: it is not written to the end.
        let first = poll_fn(|cx| Pin::new(&mut ours).poll_write(cx, &sent)).await.unwrap();
        let blocked = tokio::time::timeout(Duration::from_millis(20), ours.write_all(&sent[first..])).await;
        assert!(blocked.is_err(), "4 MB went into a socket that nobody reads");
        assert!(ours.room.is_some());
        let mut got = vec![0; sent.len()];
        ours.read_exact(&mut got).await.unwrap();
        assert!(got == sent);
        drop(writer.await.unwrap().unwrap());
        assert_eq!(ours.read(&mut got).await.unwrap(), 0, "the end is seen");
        let reader = tokio::spawn(async move {
            let mut all = Vec::new();
            read.read_to_end(&mut all).await.map(|_| all)
        });
        ours.write_all(b"the last of it").await.unwrap();
        assert!(ours.room.is_none(), "room is not listened for any more");
        ours.shutdown().await.unwrap();
        let all = reader.await.unwrap().unwrap();
        assert!(all.starts_with(&sent[..first]) && all.ends_with(b"the last of it"));
    }

    #[tokio::test]
    async fn who_waits_is_woken_by_each_message() {
        let (mut ours, mut theirs) = pair();
        let echo = tokio::spawn(async move {
            let mut asked = [0; 4];
            while theirs.read_exact(&mut asked).await.is_ok() {
                theirs.write_all(&asked).await.unwrap();
            }
        });
        for number in 0..1_000u32 {
            ours.write_all(&number.to_le_bytes()).await.unwrap();
            let mut answer = [0; 64];
            assert_eq!(ours.read(&mut answer).await.unwrap(), 4);
            assert_eq!(answer[..4], number.to_le_bytes());
        }
        drop(ours);
        echo.await.unwrap();
    }
}
