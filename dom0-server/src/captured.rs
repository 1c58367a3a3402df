//! What the log says during a test. Owns nothing of the daemon's own log; the lines are written as its are, but
//! without the time.

use std::io;
use std::sync::{Arc, Mutex, OnceLock};
use std::time::Duration;

use tokio::time::{sleep, timeout};
use tracing::subscriber::DefaultGuard;

/// How long a line may take to come.
const LIMIT: Duration = Duration::from_secs(20);

#[derive(Clone, Default)]
struct Buffer(Arc<Mutex<Vec<u8>>>);

impl io::Write for Buffer {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.0.lock().unwrap().extend_from_slice(bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// The log of the test's own thread from here on, which is that of its tasks as well under `#[tokio::test]`.
pub(crate) struct Log {
    text: Buffer,
    _guard: DefaultGuard,
}

impl Log {
    pub(crate) fn start() -> Self {
        // While there is one subscriber only, whoever first comes by an event decides for all threads whether anybody
        // listens to it, and that may be another test's thread.
        static ANOTHER: OnceLock<tracing::Dispatch> = OnceLock::new();
        ANOTHER.get_or_init(|| tracing::Dispatch::new(tracing_subscriber::registry()));
        let text = Buffer::default();
        let writer = text.clone();
        let lines = tracing_subscriber::fmt()
            .with_max_level(tracing::Level::DEBUG)
            .with_ansi(false)
            .without_time()
            .with_writer(move || writer.clone());
        Self { text, _guard: tracing::subscriber::set_default(lines.finish()) }
    }

    /// The lines so far that have this in them.
    pub(crate) fn lines(&self, with: &str) -> Vec<String> {
        let text = self.text.0.lock().unwrap().clone();
        let text = String::from_utf8(text).unwrap();
        text.lines().filter(|line| line.contains(with)).map(|line| line.trim().to_owned()).collect()
    }

    /// Waits until there are so many of them.
    pub(crate) async fn wait(&self, count: usize, with: &str) -> Vec<String> {
        let there = async {
            while self.lines(with).len() < count {
                sleep(Duration::from_millis(10)).await;
            }
        };
        timeout(LIMIT, there).await.unwrap_or_else(|_| panic!("no {with:?} in {:#?}", self.lines("")));
        self.lines(with)
    }
}
