//! What a service says to systemd: that it is ready, how it is, that it lives (`sd_notify(3)`).

use crate::environment::Environment;
use std::ffi::OsString;
use std::os::linux::net::SocketAddrExt;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::net::{SocketAddr, UnixDatagram};
use std::sync::Mutex;
use std::time::{Duration, Instant};

/// The service manager's socket, when there is one. Nothing depends on being heard.
pub(crate) struct Notify {
    socket: Option<(UnixDatagram, SocketAddr)>,
    /// How often it is to be told that this process lives.
    alive_every: Option<Duration>,
    told: Mutex<Option<Instant>>,
}

impl Notify {
    /// As the environment says.
    pub(crate) fn of(environment: &Environment) -> Self {
        let socket = environment.notify_socket.as_ref().and_then(open);
        // Half of the time after which it would be killed, as sd_watchdog_enabled(3) advises.
        Self { socket, alive_every: environment.watchdog.map(|time| time / 2), told: Mutex::new(None) }
    }

    /// It works now.
    pub(crate) fn ready(&self) {
        self.send("READY=1");
    }

    /// How it is, for `systemctl status`.
    pub(crate) fn status(&self, text: &str) {
        self.send(&format!("STATUS={}", text.replace('\n', " ")));
    }

    /// It was told to stop.
    pub(crate) fn stopping(&self) {
        self.send("STOPPING=1");
    }

    /// It lives. May be called often.
    pub(crate) fn alive(&self) {
        let Some(every) = self.alive_every else { return };
        let Ok(mut told) = self.told.lock() else { return };
        if told.is_none_or(|told| told.elapsed() >= every / 2) {
            *told = Some(Instant::now());
            self.send("WATCHDOG=1");
        }
    }

    fn send(&self, text: &str) {
        if let Some((socket, address)) = &self.socket {
            let _ = socket.send_to_addr(text.as_bytes(), address);
        }
    }
}

fn open(name: &OsString) -> Option<(UnixDatagram, SocketAddr)> {
    let bytes = name.as_bytes();
    let address = match bytes.strip_prefix(b"@") {
        Some(name) => SocketAddr::from_abstract_name(name).ok()?,
        None if bytes.starts_with(b"/") => SocketAddr::from_pathname(name).ok()?,
        None => return None,
    };
    Some((UnixDatagram::unbound().ok()?, address))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_manager_hears_it_at_a_path_and_by_an_abstract_name() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("notify");
        let name = format!("pgkeep-notify-{}", std::process::id());
        let abstract_name = SocketAddr::from_abstract_name(name.as_bytes()).unwrap();
        let listeners = [
            (path.clone().into_os_string(), UnixDatagram::bind(&path).unwrap()),
            (OsString::from(format!("@{name}")), UnixDatagram::bind_addr(&abstract_name).unwrap()),
        ];
        for (place, listener) in listeners {
            let notify =
                Notify { socket: open(&place), alive_every: Some(Duration::from_secs(60)), told: Mutex::new(None) };
            notify.ready();
            notify.alive();
            notify.alive();
            notify.status("two\nlines");
            let heard: Vec<String> = (0..3)
                .map(|_| {
                    let mut buffer = [0; 100];
                    let len = listener.recv(&mut buffer).unwrap();
                    String::from_utf8_lossy(&buffer[..len]).into_owned()
                })
                .collect();
            assert_eq!(heard, ["READY=1", "WATCHDOG=1", "STATUS=two lines"]);
        }
        assert!(open(&OsString::from("relative")).is_none());
    }
}
