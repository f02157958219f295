//! Commands of the user's, run by `sh -c`: with a limit of time, in a process group of their own, and with what they
//! printed kept for the case that they fail.

use crate::{Context, EngineError};
use std::process::{ExitStatus, Stdio};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;
use tokio::io::{AsyncRead, AsyncReadExt};
use tokio::process::{Child, Command};

/// How much of what a command printed is kept: the end of it.
const KEPT_BYTES: usize = 2000;
/// How long after its end a command's last words are waited for: something that it left running may hold its output open.
const LAST_WORDS: Duration = Duration::from_millis(300);

/// A command of the user's.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ShellCommand {
    /// What it is for, as in "the freeze command".
    pub what: String,
    /// For `sh -c`.
    pub command: String,
    /// Added to the environment.
    pub environment: Vec<(String, String)>,
    /// How long it may take; then it is killed, with all it started.
    pub time_max: Duration,
}

impl ShellCommand {
    /// Runs it to its end; an error unless it ends with 0. With a context it can be stopped.
    ///
    /// Ctrl-C at a terminal does not reach it.
    pub async fn run(&self, ctx: Option<&Context>) -> Result<(), EngineError> {
        let mut child = self.spawn().map_err(|error| self.failed(&format!("cannot be run: {error}"), ""))?;
        let group = child.id().and_then(|id| rustix::process::Pid::from_raw(i32::try_from(id).ok()?));
        let said = Said::default();
        let readers = [
            child.stdout.take().map(|out| tokio::spawn(said.clone().read(out))),
            child.stderr.take().map(|err| tokio::spawn(said.clone().read(err))),
        ];
        let ended = self.wait(&mut child, ctx).await;
        if !matches!(ended, Ok(Some(_))) {
            if let Some(group) = group {
                let _ = rustix::process::kill_process_group(group, rustix::process::Signal::KILL);
            }
            let _ = child.wait().await;
        }
        for mut reader in readers.into_iter().flatten() {
            if tokio::time::timeout(LAST_WORDS, &mut reader).await.is_err() {
                reader.abort();
            }
        }
        match ended? {
            None => {
                Err(self
                    .failed(&format!("did not end within {} s and was killed", self.time_max.as_secs()), &said.text()))
            }
            Some(status) if status.success() => Ok(()),
            Some(status) => Err(self.failed(&format!("ended with {status}"), &said.text())),
        }
    }

    fn spawn(&self) -> std::io::Result<Child> {
        Command::new("sh")
            .args(["-c", &self.command])
            .envs(self.environment.iter().map(|(name, value)| (name, value)))
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .process_group(0)
            .kill_on_drop(true)
            .spawn()
    }

    /// How it ended; none when its time was up.
    async fn wait(&self, child: &mut Child, ctx: Option<&Context>) -> Result<Option<ExitStatus>, EngineError> {
        let waited = tokio::time::timeout(self.time_max, child.wait());
        let waited = match ctx {
            Some(ctx) => ctx.or_cancel(waited).await?,
            None => waited.await,
        };
        match waited {
            Err(_) => Ok(None),
            Ok(Ok(status)) => Ok(Some(status)),
            Ok(Err(error)) => Err(self.failed(&format!("failed: {error}"), "")),
        }
    }

    fn failed(&self, how: &str, said: &str) -> EngineError {
        let colon = if said.is_empty() { "" } else { ": " };
        EngineError::failed(
            format!("the {} command `{}` {how}{colon}{said}", self.what, self.command),
            "run it by hand, as the user that runs pgkeep; it must end with exit code 0 when all is done",
        )
    }
}

/// The end of what a command printed, on both of its outputs.
#[derive(Debug, Clone, Default)]
struct Said(Arc<Mutex<Vec<u8>>>);

impl Said {
    async fn read(self, mut from: impl AsyncRead + Unpin) {
        let mut buffer = vec![0; 4096];
        while let Ok(got @ 1..) = from.read(&mut buffer).await {
            let mut kept = self.0.lock().unwrap_or_else(PoisonError::into_inner);
            kept.extend_from_slice(&buffer[..got]);
            let more = kept.len().saturating_sub(KEPT_BYTES);
            kept.drain(..more);
        }
    }

    fn text(&self) -> String {
        let kept = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        String::from_utf8_lossy(&kept).trim().to_owned()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::NoProgress;
    use std::time::Instant;
    use tokio_util::sync::CancellationToken;

    fn command(text: &str, time_max: Duration) -> ShellCommand {
        let environment = vec![("PGKEEP_X".to_owned(), "a 'b'".to_owned())];
        ShellCommand { what: "test".into(), command: text.into(), environment, time_max }
    }

    async fn says(text: &str, time_max: Duration) -> String {
        command(text, time_max).run(None).await.map_or_else(|error| error.to_string(), |()| "done".into())
    }

    #[tokio::test]
    async fn commands_end_well_badly_or_not_at_all() {
        let minute = Duration::from_secs(60);
        assert_eq!(says("test \"$PGKEEP_X\" = \"a 'b'\"", minute).await, "done");
        let text = says("echo one; echo two >&2; exit 3", minute).await;
        assert!(text.contains("exit status: 3") && text.contains("one") && text.contains("two"), "{text}");
        let text = says("i=0; while [ $i -lt 3000 ]; do echo line $i; i=$((i+1)); done; exit 1", minute).await;
        assert!(text.contains("line 2999") && !text.contains("line 1000"), "the end of it counts: {text}");
        let begin = Instant::now();
        let text = says("echo begun; sleep 1000", Duration::from_millis(200)).await;
        assert!(text.contains("did not end within 0 s and was killed: begun"), "{text}");
        // Something stays that holds the output open: the command itself has ended.
        assert_eq!(says("sleep 5 & echo $!", minute).await, "done");
        assert!(begin.elapsed() < minute);
    }

    #[tokio::test]
    async fn a_command_can_be_stopped_with_all_it_started() {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("pid");
        let ctx = Context {
            progress: Arc::new(NoProgress),
            cancel: CancellationToken::new(),
            clock: Arc::new(jiff::Timestamp::now),
        };
        let token = ctx.cancel.clone();
        let shell = command(&format!("sleep 1000 & echo $! > {}; wait", file.display()), Duration::from_secs(60));
        let running = tokio::spawn(async move { shell.run(Some(&ctx)).await });
        let pid = loop {
            match std::fs::read_to_string(&file).ok().and_then(|text| text.trim().parse::<u32>().ok()) {
                Some(pid) => break pid,
                None => tokio::time::sleep(Duration::from_millis(5)).await,
            }
        };
        token.cancel();
        assert!(matches!(running.await.unwrap(), Err(EngineError::Cancelled)));
        // Killed, though perhaps nobody has taken note of its end yet.
        let state = || std::fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
        while !(state().is_empty() || state().contains(") Z ")) {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    }
}
