//! `xenflow xl-receive` and `xenflow arrival`, before a daemon of few words and a receiver that says what `xl migrate-receive` says: it
//! reads the guest, waits for a word, and destroys its copy if none comes.

use std::fs;
use std::io::{BufRead, BufReader, Read, Write};
use std::os::unix::net::UnixListener;
use std::path::PathBuf;
use std::process::{Child, Command, Output, Stdio};
use std::sync::atomic::{AtomicU32, Ordering};
use std::thread::JoinHandle;

const BANNER: &[u8] = b"xl migration receiver ready, send binary domain data.\n";
const READY: &[u8] = b"domain received, ready to unpause\0";
const GO: &[u8] = b"domain is yours, you are cleared to unpause\0";
const REPORT: &[u8] = b"my copy unpause results are as follows\0\0";
const MEMORY: usize = 3_000_000;

/// What the daemon says, for each question that comes: of the row alone, and of ports that are plugged in.
type Says = fn(is_plugged: bool, nth: u32) -> &'static str;

const NOTHING: &str = r#"{"ok":{"obstacle":null,"is_for_now":false}}"#;
const FOR_NOW: &str = r#"{"ok":{"obstacle":"router r1 is not ready here","is_for_now":true}}"#;
const FOR_GOOD: &str = r#"{"ok":{"obstacle":"router r1 is to stay on a","is_for_now":false}}"#;

struct Host(PathBuf);

impl Host {
    fn new() -> Self {
        static NEXT: AtomicU32 = AtomicU32::new(0);
        let number = NEXT.fetch_add(1, Ordering::Relaxed);
        let dir = std::env::temp_dir().join(format!("xenflow-receive-{}-{number}", std::process::id()));
        fs::create_dir(&dir).unwrap();
        let host = Self(dir);
        let text = format!(
            "#!/bin/sh\n\
             cd {}\n\
             if [ \"$1\" = destroy ]; then echo \"$2\" >>destroyed; exit; fi\n\
             echo \"$*\" >called\n\
             printf 'xl migration receiver ready, send binary domain data.\\n'\n\
             head -c {} >guest\n\
             [ -s guest ] || exit 1\n\
             printf 'domain received, ready to unpause\\0'\n\
             head -c {} >go\n\
             if [ -s go ]; then printf 'my copy unpause results are as follows\\0\\0'; exit; fi\n\
             printf 'my copy unpause results are as follows\\0\\003'\n\
             exit 1\n",
            host.0.display(),
            guest().len(),
            GO.len()
        );
        // Another process writes it: what another test starts meanwhile would else have it open, and then it cannot be run.
        let mut install = Command::new("install");
        install.args(["-m", "755", "/dev/stdin"]).arg(host.0.join("xl")).stdin(Stdio::piped());
        let mut install = install.spawn().unwrap();
        install.stdin.take().unwrap().write_all(text.as_bytes()).unwrap();
        assert!(install.wait().unwrap().success());
        host
    }

    fn says(&self, file: &str) -> Vec<u8> {
        fs::read(self.0.join(file)).unwrap_or_default()
    }

    /// Answers who asks; ends with the client, and says what it was asked.
    fn daemon(&self, says: Says) -> JoinHandle<Vec<String>> {
        let listener = UnixListener::bind(self.0.join("control.sock")).unwrap();
        std::thread::spawn(move || {
            let mut asked = Vec::new();
            // One connection for each of the two waits, or one that is refused.
            for _ in 0..2 {
                let (stream, _) = listener.accept().unwrap();
                let mut lines = BufReader::new(stream.try_clone().unwrap()).lines();
                let mut stream = stream;
                while let Some(Ok(line)) = lines.next() {
                    if line == "end" {
                        return asked;
                    }
                    let is_plugged = line.contains("\"is_plugged\":true");
                    let answer = says(is_plugged, u32::try_from(asked.len()).unwrap());
                    asked.push(line);
                    writeln!(stream, "{answer}").unwrap();
                }
            }
            asked
        })
    }

    /// Ends a daemon that waits for one question more.
    fn end(&self, daemon: JoinHandle<Vec<String>>) -> Vec<String> {
        if let Ok(mut stream) = std::os::unix::net::UnixStream::connect(self.0.join("control.sock")) {
            let _ = stream.write_all(b"end\n");
        }
        daemon.join().unwrap()
    }

    fn xenflow(&self, arguments: &[&str]) -> Command {
        let mut command = Command::new(env!("CARGO_BIN_EXE_xenflow"));
        command.args(arguments).arg("--socket").arg(self.0.join("control.sock"));
        command
    }

    fn receive(&self) -> Child {
        let mut command = self.xenflow(&["--timeout", "1", "xl-receive"]);
        command.arg("--").arg(self.0.join("xl")).arg("migrate-receive");
        command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap()
    }
}

impl Drop for Host {
    fn drop(&mut self) {
        fs::remove_dir_all(&self.0).unwrap();
    }
}

/// A header as `xl` writes it, and memory.
fn guest() -> Vec<u8> {
    let config = "{\"c_info\":{\"name\":\"r1\"},\"nics\":[{\"mac\":\"00:16:3e:00:00:10\"}]}\0";
    let length = u32::try_from(config.len()).unwrap();
    let words = [0x0102_0304, 3, 0, length + 4, length].map(u32::to_le_bytes);
    let magic = b"Xen saved domain, xl format\n \0 \r";
    [magic.as_slice(), &words.concat(), config.as_bytes(), &vec![0x5a; MEMORY]].concat()
}

/// What the sender does: sends the guest, reads whether it is there, and then says "go". Comes back with all that it was told.
fn send(mut receiver: Child) -> (Vec<u8>, Output) {
    let (mut to, mut from) = (receiver.stdin.take().unwrap(), receiver.stdout.take().unwrap());
    let mut said = vec![0; BANNER.len()];
    from.read_exact(&mut said).unwrap();
    let is_sent = to.write_all(&guest()).is_ok();
    let mut answer = vec![0; READY.len()];
    let is_answered = is_sent && from.read_exact(&mut answer).is_ok();
    if is_answered {
        said.extend_from_slice(&answer);
        if answer == READY {
            to.write_all(GO).unwrap();
        }
    }
    drop(to);
    from.read_to_end(&mut said).unwrap();
    (said, receiver.wait_with_output().unwrap())
}

fn words(output: &Output) -> String {
    String::from_utf8(output.stderr.clone()).unwrap()
}

#[test]
fn a_guest_that_nothing_is_in_the_way_of_passes_as_it_is() {
    for has_daemon in [true, false] {
        let host = Host::new();
        let daemon = has_daemon.then(|| host.daemon(|_, _| NOTHING));
        let (said, output) = send(host.receive());
        assert!(output.status.success(), "{}", words(&output));
        assert_eq!(said, [BANNER, READY, REPORT].concat());
        assert!(host.says("guest") == guest() && host.says("go") == GO, "the receiver had something else");
        assert_eq!(host.says("called"), b"migrate-receive\n");
        assert_eq!(host.says("destroyed"), b"");
        match daemon {
            Some(daemon) => {
                let asked = daemon.join().unwrap();
                assert_eq!(asked.len(), 2, "{asked:?}");
                assert!(
                    asked[0].contains("00:16:3e:00:00:10") && asked[0].contains("\"is_plugged\":false"),
                    "{asked:?}"
                );
                assert!(asked[1].contains("\"is_plugged\":true"), "{asked:?}");
            }
            None => assert!(words(&output).contains("no daemon answers"), "{}", words(&output)),
        }
    }
}

#[test]
fn a_guest_waits_for_its_ports_before_it_runs_on() {
    let host = Host::new();
    let daemon = host.daemon(|_, nth| if nth < 5 { FOR_NOW } else { NOTHING });
    let (said, output) = send(host.receive());
    assert!(output.status.success(), "{}", words(&output));
    assert_eq!(said, [BANNER, READY, REPORT].concat());
    assert_eq!(daemon.join().unwrap().len(), 7);
}

#[test]
fn what_is_refused_early_sends_no_memory() {
    let host = Host::new();
    let daemon = host.daemon(|_, _| FOR_GOOD);
    let (said, output) = send(host.receive());
    assert_eq!(output.status.code(), Some(1));
    assert_eq!(said, BANNER, "the sender was told something else");
    assert_eq!(host.says("guest"), b"", "some of it came all the same");
    assert!(
        words(&output).contains("router r1 is to stay on a; the guest goes on where it was"),
        "{}",
        words(&output)
    );
    host.end(daemon);
}

#[test]
fn what_is_refused_late_goes_on_where_it_was_and_leaves_nothing() {
    let host = Host::new();
    let daemon = host.daemon(|is_plugged, _| if is_plugged { FOR_NOW } else { NOTHING });
    let (said, output) = send(host.receive());
    assert_eq!(output.status.code(), Some(1));
    let answer = said.strip_prefix(BANNER).unwrap();
    // So long as what is expected, and something else: the sender resumes at once, and is told nothing more.
    assert!(answer.len() == READY.len() && answer != READY, "{:?}", String::from_utf8_lossy(answer));
    assert_eq!(host.says("guest"), guest());
    assert_eq!(host.says("go"), b"", "it was told to go");
    assert_eq!(host.says("destroyed"), b"r1--incoming\n");
    assert!(words(&output).contains("waited 1 s: router r1 is not ready here"), "{}", words(&output));
    daemon.join().unwrap();
}

#[test]
fn a_sender_that_is_gone_leaves_nothing() {
    let host = Host::new();
    let daemon = host.daemon(|_, _| NOTHING);
    let mut receiver = host.receive();
    let mut to = receiver.stdin.take().unwrap();
    to.write_all(&guest()).unwrap();
    drop(to);
    // It reads nothing of what it is told.
    drop(receiver.stdout.take());
    assert_eq!(receiver.wait().unwrap().code(), Some(1));
    assert_eq!(host.says("destroyed"), b"r1--incoming\n");
    host.end(daemon);
}

#[test]
fn hooks_are_told_by_exit_code_and_one_line() {
    let host = Host::new();
    let ask = |mac| host.xenflow(&["--timeout", "1", "arrival", "--plugged", "--mac", mac]).output().unwrap();
    // No daemon: nothing is known.
    assert_eq!(ask("52:54:00:00:00:01").status.code(), Some(0));
    let daemon = host.daemon(|_, _| FOR_GOOD);
    let output = ask("52:54:00:00:00:01");
    assert_eq!(output.status.code(), Some(1));
    assert_eq!(words(&output), "xenflow: router r1 is to stay on a\n");
    let output = ask("52:54");
    assert_eq!(output.status.code(), Some(2), "{}", words(&output));
    host.end(daemon);
}
