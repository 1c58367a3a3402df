//! The control socket and who abuses it: what it answers is made up here.

use std::os::unix::fs::PermissionsExt;
use std::path::PathBuf;

use dom0_server::events::Events;
use dom0_server::inspect::socket::{ControlError, MAX_CLIENTS, open};
use dom0_server::inspect::{Answer, Ask, MAX_REQUEST, Question};
use dom0_server::shaper::handle::Handle;
use serde_json::{Value, json};
use tokio::io::{AsyncBufReadExt, AsyncWriteExt, BufReader};
use tokio::net::UnixStream;
use tokio::sync::mpsc;
use tokio::time::timeout;

use crate::support::{Dir, LIMIT, refused};

/// The daemon's loop, in short: to routers it has nothing to say.
fn answering(mut asks: mpsc::Receiver<Ask>) {
    tokio::spawn(async move {
        while let Some(ask) = asks.recv().await {
            let answer = match ask.question {
                Question::Status => Answer::Value(json!({"node": "a"})),
                Question::Events(_) | Question::Sla(_) | Question::SlaHistory(_) => {
                    unreachable!("the socket answers it")
                }
                Question::Routes(router, ..) | Question::Flows(router, ..) => {
                    Answer::Refused(format!("there is no router {router}"))
                }
                Question::Explain(_) | Question::Traced(_) | Question::Arrival(..) => {
                    Answer::Refused("nobody knows".to_owned())
                }
            };
            let _ = ask.reply.send(answer);
        }
    });
}

struct Client(BufReader<UnixStream>);

impl Client {
    async fn connect(path: &PathBuf) -> Self {
        Self(BufReader::new(UnixStream::connect(path).await.unwrap()))
    }

    async fn say(&mut self, bytes: &[u8]) {
        // One that is closed already says so when it is read.
        let _ = self.0.write_all(bytes).await;
    }

    /// The next line; none: it was closed.
    async fn hear(&mut self) -> Option<Value> {
        let mut line = String::new();
        let read = timeout(LIMIT, self.0.read_line(&mut line)).await.unwrap();
        (read.unwrap_or_default() > 0).then(|| serde_json::from_str(&line).unwrap())
    }
}

const STATUS: &[u8] = b"{\"request\":\"status\"}\n";

#[tokio::test]
async fn the_socket_is_its_owners_and_goes_with_the_daemon() {
    let dir = Dir::new();
    let path = dir.0.join("run/xf.sock");
    // A daemon that was killed leaves its socket behind.
    std::fs::create_dir(dir.0.join("run")).unwrap();
    drop(std::os::unix::net::UnixListener::bind(&path).unwrap());
    let (control, asks) = open(&path, &Events::default(), &Handle::default()).await.unwrap();
    answering(asks);
    assert_eq!(std::fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o600);
    let mut client = Client::connect(&path).await;
    client.say(STATUS).await;
    assert_eq!(client.hear().await, Some(json!({"ok": {"node": "a"}})));
    assert!(
        matches!(open(&path, &Events::default(), &Handle::default()).await, Err(ControlError::Taken(_))),
        "two daemons"
    );
    drop(control);
    assert!(!path.exists());
    assert_eq!(client.hear().await, None);

    let made = dir.0.join("made/deep");
    let (control, _asks) = open(&made.join("xf.sock"), &Events::default(), &Handle::default()).await.unwrap();
    assert_eq!(std::fs::metadata(&made).unwrap().permissions().mode() & 0o777, 0o700);
    drop(control);
    std::fs::write(&path, "mine").unwrap();
    assert!(matches!(
        open(&path, &Events::default(), &Handle::default()).await,
        Err(ControlError::NoSocket(_))
    ));
    assert_eq!(std::fs::read(&path).unwrap(), b"mine");
}

#[tokio::test]
async fn hostile_clients_cost_nothing_but_themselves() {
    let dir = Dir::new();
    let path = dir.0.join("xf.sock");
    let (_control, asks) = open(&path, &Events::default(), &Handle::default()).await.unwrap();
    answering(asks);
    let mut good = Client::connect(&path).await;
    for wrong in [&b"\n"[..], b"\xff\x00\n", b"{}\n", b"{\"request\":\"routes\",\"router\":\"..\"}\n"] {
        let mut client = Client::connect(&path).await;
        client.say(wrong).await;
        let answer = client.hear().await.unwrap();
        assert!(answer["error"].is_string(), "{answer}");
        // What is wrong with one request is not with the next.
        client.say(STATUS).await;
        assert!(client.hear().await.unwrap()["ok"].is_object());
    }
    // A line without an end, and the end of the stream in a line.
    let mut long = Client::connect(&path).await;
    long.say(&vec![b' '; MAX_REQUEST + 1]).await;
    assert_eq!(long.hear().await, None);
    let mut half = Client::connect(&path).await;
    half.say(b"{\"request\":").await;
    half.0.shutdown().await.unwrap();
    assert_eq!(half.hear().await, None);
    let mut longest = Client::connect(&path).await;
    let blanks = vec![b' '; MAX_REQUEST + 1 - STATUS.len()];
    longest.say(&[&blanks, STATUS].concat()).await;
    assert!(longest.hear().await.unwrap()["ok"].is_object());
    drop((long, half, longest));

    // More than there is room for are told so; one that was there goes on.
    let mut crowd = Vec::new();
    let told = loop {
        let mut client = Client::connect(&path).await;
        client.say(STATUS).await;
        match client.hear().await {
            Some(answer) if answer["ok"].is_object() => crowd.push(client),
            other => break other,
        }
        assert!(crowd.len() <= MAX_CLIENTS);
    };
    assert_eq!(told, Some(json!({"error": "16 clients are being served already"})));
    good.say(STATUS).await;
    assert!(good.hear().await.unwrap()["ok"].is_object());
    drop(crowd);
    // A flood of questions of one that reads no answer does not keep others from theirs.
    let mut deaf = loop {
        // The places of the crowd are free when the daemon has seen that it went.
        let mut client = Client::connect(&path).await;
        client.say(STATUS).await;
        if client.hear().await.is_some_and(|answer| answer["ok"].is_object()) {
            break client;
        }
    };
    let flood = tokio::spawn(async move {
        for _ in 0..50_000 {
            deaf.say(STATUS).await;
        }
    });
    for _ in 0..100 {
        good.say(STATUS).await;
        assert!(good.hear().await.unwrap()["ok"].is_object());
    }
    flood.abort();
}

#[tokio::test(flavor = "multi_thread")]
async fn the_command_says_what_is_the_matter() {
    let dir = Dir::new();
    let path = dir.0.join("xf.sock");
    let shown = path.display();
    let xenflow = |line: String| {
        let mut command = std::process::Command::new(env!("CARGO_BIN_EXE_xenflow"));
        (command.args(line.split(' ')).output().unwrap(), line)
    };
    let away = format!(
        "no daemon answers at {shown}: start xenflow-dom0 (systemctl start xenflow-dom0), or say --socket PATH if its \
         control_socket is another one"
    );
    for command in ["status", "routes r1", "flows r1"] {
        let (output, line) = xenflow(format!("{command} --socket {shown}"));
        refused(&line, &output, 1, &away);
    }
    let (output, line) = xenflow(format!("routes r1 10/8 --socket {shown}"));
    refused(&line, &output, 2, "\"10/8\" is neither a prefix, as 10.0.0.0/8, nor an address");

    let (_control, asks) = open(&path, &Events::default(), &Handle::default()).await.unwrap();
    answering(asks);
    let (output, line) = xenflow(format!("routes r1 --socket {shown}"));
    refused(&line, &output, 1, "there is no router r1");
    let (output, line) = xenflow(format!("status --json --socket {shown}"));
    assert!(output.status.success(), "{line}");
    assert_eq!(serde_json::from_slice::<Value>(&output.stdout).unwrap(), json!({"node": "a"}));

    // A daemon that says nothing.
    let mute = dir.0.join("mute.sock");
    let (_control, _asks) = open(&mute, &Events::default(), &Handle::default()).await.unwrap();
    let (output, line) = xenflow(format!("status --timeout 1 --socket {}", mute.display()));
    refused(&line, &output, 1, &format!("the daemon at {} does not answer within 1 s", mute.display()));
}
