//! Moves by real commands: a script in the place of what moves guests, looked after by the built `xenflow-dom0`.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::PathBuf;
use std::time::{Duration, Instant};

use dom0_server::db::migration::Via;
use dom0_server::migration::sequencer;
use dom0_server::migration::toolstack::run::{Ending, FOLDER, MAX_LOG, State, Stopped};
use dom0_server::migration::toolstack::{Config, Order, ToolstackError, Toolstacks, Whereabouts};

use crate::support::{Dir, LIMIT, Runs};

/// Says that it has begun, and goes on until there is a file `end` with its exit code. With a file `late` it cannot be brought back.
/// As `xl` it has a child that carries the guest over, and another that does not; it ends with the first.
const MOVER: &str = r#"#!/bin/sh
dir=${0%/*}
wait_for() { while [ -d "$dir" ] && [ ! -s "$dir/$1" ]; do sleep 0.02; done; }
case $1 in
state) cat "$dir/$2.state"; exit ;;
list) cat "$dir/$2.list"; exit ;;
domstate) echo running; exit ;;
migrate)
    "$dir/libxl-save-helper" 300 &
    helper=$!
    until [ "$(cat /proc/$helper/comm)" = libxl-save-help ]; do sleep 0.02; done
    sleep 300 &
    transport=$!
    echo $transport >"$dir/transport"
    [ ! -e "$dir/late" ] || echo "migration sender: Giving target permission to start." >&2
    echo "$*" >>"$dir/begun"
    wait $transport
    if kill -0 $helper; then echo "migration failed, resuming at sender" >&2; else echo "helper lost" >&2; fi
    kill $helper
    exit 1 ;;
esac
if [ -e "$dir/late" ]; then trap '' TERM; else trap 'echo "brought back" >&2; exit 3' TERM; fi
[ ! -e "$dir/noise" ] || head -c 1000000 /dev/zero | tr '\0' 'x' >&2
echo "$*" >>"$dir/begun"
wait_for end
[ ! -e "$dir/words" ] || cat "$dir/words" >&2
exit "$(cat "$dir/end")"
"#;

struct Site {
    dir: Dir,
}

impl Runs for Site {
    fn dir(&self) -> &Dir {
        &self.dir
    }
}

impl Drop for Site {
    /// Ends what has not ended, and waits for it.
    fn drop(&mut self) {
        let _ = fs::write(self.path("end"), "0");
        let end = Instant::now() + LIMIT;
        while self.processes().is_some() && Instant::now() < end {
            std::thread::sleep(Duration::from_millis(20));
        }
    }
}

impl Site {
    fn new() -> Self {
        let site = Self { dir: Dir::new() };
        fs::write(site.path("mover"), MOVER).unwrap();
        fs::set_permissions(site.path("mover"), fs::Permissions::from_mode(0o755)).unwrap();
        fs::copy("/bin/sleep", site.path("libxl-save-helper")).unwrap();
        site
    }

    /// As a daemon that has just begun makes them.
    fn toolstacks(&self) -> Toolstacks {
        let mover = self.path("mover");
        self.with(&format!(
            "detach = \"session\"\nlab = {{ command = [{mover:?}] }}\nxl = {{ command = {mover:?} }}\n"
        ))
    }

    fn with(&self, config: &str) -> Toolstacks {
        let config: Config = toml::from_str(config).unwrap();
        config.check().unwrap();
        Toolstacks::new(config, self.path("state"), env!("CARGO_BIN_EXE_xenflow-dom0").into())
    }

    /// A process with this directory among its arguments.
    fn processes(&self) -> Option<u32> {
        let dir = self.dir.0.to_str().unwrap();
        fs::read_dir("/proc").unwrap().find_map(|entry| {
            let pid = entry.ok()?.file_name().to_str()?.parse().ok()?;
            let line = fs::read(format!("/proc/{pid}/cmdline")).ok()?;
            String::from_utf8_lossy(&line).contains(dir).then_some(pid)
        })
    }

    /// The commands that have begun.
    fn begun(&self) -> String {
        fs::read_to_string(self.path("begun")).unwrap_or_default()
    }

    fn until_begun(&self) {
        self.until("move", |site| site.begun().ends_with('\n'));
    }

    fn end(&self, code: &str) {
        fs::write(self.path("end"), code).unwrap();
    }

    fn file(&self, number: u64, name: &str) -> PathBuf {
        self.path("state").join(FOLDER).join(number.to_string()).join(name)
    }

    /// Who has this part in a move.
    fn pid(&self, number: u64, part: &str) -> u32 {
        let process: serde_json::Value =
            serde_json::from_slice(&fs::read(self.file(number, part)).unwrap()).unwrap();
        u32::try_from(process["pid"].as_u64().unwrap()).unwrap()
    }

    fn kill(&self, number: u64, part: &str) {
        self.signal("KILL", &self.pid(number, part).to_string());
    }

    fn signal(&self, name: &str, pid: &str) {
        self.tool("sh", &["-c", "kill -$0 $1", name, pid]);
    }

    fn ending(&self, order: &Order) -> Ending {
        let ending = || match self.toolstacks().state(order).unwrap() {
            State::Ended(ending) => Some(ending),
            State::None | State::Running => None,
        };
        self.until("end", |_| ending().is_some());
        ending().unwrap()
    }
}

fn order(number: u64) -> Order {
    Order { number, guest: "r1".parse().unwrap(), from: "a".parse().unwrap(), to: "b".parse().unwrap() }
}

fn exit(code: i32, last: &str) -> Ending {
    Ending { code: Some(code), last: last.into(), ..Ending::default() }
}

#[tokio::test]
async fn a_move_is_made_once_whoever_asks() {
    let (site, order) = (Site::new(), order(7));
    let toolstacks = site.toolstacks();
    assert_eq!(toolstacks.state(&order).unwrap(), State::None);
    // Several at once, as nobody knows yet that it has begun; then by a daemon that was started again.
    for _ in 0..4 {
        toolstacks.start(Via::Lab, &order).await.unwrap();
    }
    site.until_begun();
    assert_eq!(toolstacks.state(&order).unwrap(), State::Running);
    drop(toolstacks);
    let toolstacks = site.toolstacks();
    toolstacks.start(Via::Lab, &order).await.unwrap();
    assert_eq!(sequencer::Run::from(&toolstacks.state(&order).unwrap()), sequencer::Run::Running);
    assert!(!toolstacks.forget(7).unwrap(), "it runs");
    // Nothing that ends this session ends it.
    let session = |pid: u32| {
        let stat = fs::read_to_string(format!("/proc/{pid}/stat")).unwrap();
        // State, parent, process group, session.
        stat.rsplit(')').next().and_then(|rest| rest.split_whitespace().nth(3)).map(str::to_owned)
    };
    let supervisor = site.pid(7, "supervisor");
    assert_eq!(session(supervisor), Some(supervisor.to_string()));
    assert_eq!(session(site.pid(7, "process")), Some(supervisor.to_string()));
    site.end("0");
    assert_eq!(site.ending(&order), exit(0, ""));
    toolstacks.start(Via::Lab, &order).await.unwrap();
    assert_eq!(toolstacks.stop(Via::Lab, &order).await.unwrap(), Stopped::Ended);
    site.until("end of all", |site| site.processes().is_none());
    assert_eq!(site.begun(), "move r1 a b 7\n");
    assert_eq!(toolstacks.kept().unwrap(), [7]);
    assert!(toolstacks.forget(7).unwrap() && toolstacks.forget(7).unwrap());
    assert_eq!((toolstacks.kept().unwrap(), toolstacks.state(&order).unwrap()), (vec![], State::None));
}

#[tokio::test]
async fn how_it_ended_is_told_to_whoever_asks_later() {
    let site = Site::new();
    fs::write(site.path("words"), "first\nthe other host is full\n").unwrap();
    site.end("4");
    site.toolstacks().start(Via::Lab, &order(1)).await.unwrap();
    let ending = site.ending(&order(1));
    assert_eq!(ending, exit(4, "the other host is full"));
    assert_eq!(ending.to_string(), "exit code 4: the other host is full");
    // One that cannot be run.
    let toolstacks = site.with("detach = \"session\"\nlab = { command = [\"/nowhere/mover\"] }");
    toolstacks.start(Via::Lab, &order(2)).await.unwrap();
    let last = "xenflow-dom0: cannot run /nowhere/mover: No such file or directory (os error 2)";
    assert_eq!(site.ending(&order(2)), exit(127, last));
    // One that is killed.
    fs::remove_file(site.path("end")).unwrap();
    fs::remove_file(site.path("begun")).unwrap();
    site.toolstacks().start(Via::Lab, &order(3)).await.unwrap();
    site.until_begun();
    site.kill(3, "process");
    let killed = Ending { signal: Some(9), ..Ending::default() };
    assert_eq!(site.ending(&order(3)), killed);
    assert_eq!(killed.to_string(), "ended by signal 9");
}

#[tokio::test]
async fn it_is_over_once_the_command_has_ended_whoever_looked_after_it() {
    let (site, order) = (Site::new(), order(1));
    site.toolstacks().start(Via::Lab, &order).await.unwrap();
    site.until_begun();
    site.kill(1, "supervisor");
    // Dead, whether or not somebody has waited for it.
    let stat = format!("/proc/{}/stat", site.pid(1, "supervisor"));
    site.until("death", |_| !fs::read_to_string(&stat).is_ok_and(|stat| !stat.contains(") Z ")));
    let toolstacks = site.toolstacks();
    assert_eq!(toolstacks.state(&order).unwrap(), State::Running);
    toolstacks.start(Via::Lab, &order).await.unwrap();
    assert_eq!(toolstacks.stop(Via::Lab, &order).await.unwrap(), Stopped::Told);
    let ending = site.ending(&order);
    assert_eq!((&ending, ending.to_string().as_str()), (&Ending::default(), "ended, nobody knows how"));
    toolstacks.start(Via::Lab, &order).await.unwrap();
    assert_eq!((site.begun().as_str(), site.processes()), ("move r1 a b 1\n", None));
}

/// What is left of a boot before, or of a process long ago, is of nobody who lives.
#[tokio::test]
async fn a_number_of_a_process_is_not_the_process() {
    let site = Site::new();
    let toolstacks = site.toolstacks();
    toolstacks.start(Via::Lab, &order(1)).await.unwrap();
    site.until_begun();
    let real = fs::read_to_string(site.file(1, "process")).unwrap();
    assert_eq!(toolstacks.state(&order(1)).unwrap(), State::Running);
    let start = real.split("\"start\":").nth(1).unwrap().split(',').next().unwrap();
    let other = real.replace(start, "1");
    assert_ne!(real, other);
    // Another move, with what it has of that one.
    fs::create_dir(site.file(2, "")).unwrap();
    fs::copy(site.file(1, "order"), site.file(2, "order")).unwrap();
    for (process, is) in [(&real, State::Running), (&other, State::Ended(Ending::default()))] {
        fs::write(site.file(2, "process"), process).unwrap();
        fs::write(site.file(2, "supervisor"), &other).unwrap();
        assert_eq!(toolstacks.state(&order(2)).unwrap(), is);
    }
    assert_eq!(toolstacks.stop(Via::Lab, &order(2)).await.unwrap(), Stopped::Ended);
    // Who was to run it is dead, and nothing runs: nothing ever will.
    fs::remove_file(site.file(2, "process")).unwrap();
    assert_eq!(toolstacks.state(&order(2)).unwrap(), State::Ended(Ending::default()));
    toolstacks.start(Via::Lab, &order(2)).await.unwrap();
    site.end("0");
    assert_eq!(site.ending(&order(1)), exit(0, ""));
    site.until("end of all", |site| site.processes().is_none());
    assert_eq!(site.begun(), "move r1 a b 1\n");
}

#[tokio::test]
async fn a_move_is_stopped_before_and_after_it_began() {
    let site = Site::new();
    let toolstacks = site.toolstacks();
    assert_eq!(toolstacks.stop(Via::Lab, &order(1)).await.unwrap(), Stopped::Before);
    toolstacks.start(Via::Lab, &order(1)).await.unwrap();
    let ending = Ending { last: "it was stopped before it began".into(), ..Ending::default() };
    assert_eq!(site.ending(&order(1)), ending);
    assert_eq!((site.begun().as_str(), site.processes()), ("", None));

    toolstacks.start(Via::Lab, &order(2)).await.unwrap();
    site.until_begun();
    assert_eq!(toolstacks.stop(Via::Lab, &order(2)).await.unwrap(), Stopped::Told);
    assert_eq!(site.ending(&order(2)), exit(3, "brought back"));
    assert_eq!(toolstacks.stop(Via::Lab, &order(2)).await.unwrap(), Stopped::Ended);

    fs::write(site.path("late"), "").unwrap();
    fs::remove_file(site.path("begun")).unwrap();
    toolstacks.start(Via::Lab, &order(3)).await.unwrap();
    site.until_begun();
    assert_eq!(toolstacks.stop(Via::Lab, &order(3)).await.unwrap(), Stopped::Told);
    site.end("0");
    assert_eq!(site.ending(&order(3)), exit(0, ""), "it was too late for that");
}

/// Asked to start and to stop at once, it either never begins or is brought back.
#[tokio::test]
async fn start_and_stop_may_cross() {
    let site = Site::new();
    let toolstacks = site.toolstacks();
    for number in 1..=8 {
        let order = order(number);
        toolstacks.start(Via::Lab, &order).await.unwrap();
        let mut stopped = toolstacks.stop(Via::Lab, &order).await.unwrap();
        let before = stopped == Stopped::Before;
        let end = Instant::now() + LIMIT;
        while stopped != Stopped::Ended {
            assert!(Instant::now() < end, "{stopped:?}");
            std::thread::sleep(Duration::from_millis(10));
            stopped = toolstacks.stop(Via::Lab, &order).await.unwrap();
        }
        site.until("end of all", |site| site.processes().is_none());
        if before {
            let line = format!("move r1 a b {number}\n");
            assert!(!site.begun().contains(&line), "{number}");
        }
    }
}

#[tokio::test]
async fn xl_is_cut_off_from_the_other_host_and_no_later_than_that_may_be() {
    let site = Site::new();
    let toolstacks = site.toolstacks();
    toolstacks.start(Via::Xl, &order(1)).await.unwrap();
    site.until_begun();
    assert_eq!(site.begun(), "migrate r1 b\n");
    assert_eq!(toolstacks.stop(Via::Xl, &order(1)).await.unwrap(), Stopped::Told);
    assert_eq!(site.ending(&order(1)), exit(1, "migration failed, resuming at sender"));

    fs::write(site.path("late"), "").unwrap();
    fs::remove_file(site.path("begun")).unwrap();
    toolstacks.start(Via::Xl, &order(2)).await.unwrap();
    site.until_begun();
    // Who looks after it writes the log.
    let log = |site: &Site| fs::read_to_string(site.file(2, "log")).unwrap_or_default();
    site.until("log", |site| log(site).contains("Giving target"));
    assert_eq!(toolstacks.stop(Via::Xl, &order(2)).await.unwrap(), Stopped::TooLate);
    assert_eq!(toolstacks.state(&order(2)).unwrap(), State::Running);
    site.signal("TERM", fs::read_to_string(site.path("transport")).unwrap().trim());
    assert_eq!(site.ending(&order(2)).code, Some(1));
}

#[tokio::test]
async fn a_log_is_no_longer_than_it_may_be() {
    let site = Site::new();
    fs::write(site.path("noise"), "").unwrap();
    fs::write(site.path("words"), "\nthe end\n").unwrap();
    site.end("1");
    site.toolstacks().start(Via::Lab, &order(1)).await.unwrap();
    assert_eq!(site.ending(&order(1)), exit(1, "the end"));
    let size = |name: &str| fs::metadata(site.file(1, name)).unwrap().len();
    assert!(size("log") <= MAX_LOG && size("log.1") <= MAX_LOG);
    assert!(fs::read_to_string(site.file(1, "log")).unwrap().ends_with("the end\n"));
}

#[tokio::test]
async fn a_guest_is_where_its_toolstack_says() {
    let site = Site::new();
    let toolstacks = site.toolstacks();
    let guest = order(1).guest;
    for (word, is) in [
        ("running", Whereabouts::Running),
        ("suspended", Whereabouts::Suspended),
        ("gone", Whereabouts::Gone),
    ] {
        fs::write(site.path("r1.state"), word).unwrap();
        assert_eq!(toolstacks.whereabouts(Via::Lab, &guest).await.unwrap(), is);
    }
    fs::write(site.path("r1.list"), "r1    3   128     1     -b----       2.5\n").unwrap();
    assert_eq!(toolstacks.whereabouts(Via::Xl, &guest).await.unwrap(), Whereabouts::Running);
    // More than anybody reads: an answer that is none, and no memory.
    fs::write(site.path("r1.list"), "x".repeat(10_000_000)).unwrap();
    assert!(matches!(toolstacks.whereabouts(Via::Xl, &guest).await, Err(ToolstackError::Command(_))));
    for via in [Via::Virsh, Via::Other] {
        let toolstacks = site.with("detach = \"session\"\nvirsh = { command = \"/nowhere/virsh\" }");
        let error = toolstacks.whereabouts(via, &guest).await.unwrap_err().to_string();
        assert!(
            error == "cannot run /nowhere/virsh" || error.starts_with("no command moves a guest by other")
        );
        toolstacks.start(Via::Lab, &order(1)).await.unwrap_err();
    }
}

#[tokio::test]
async fn what_is_of_another_move_is_refused() {
    let site = Site::new();
    let toolstacks = site.toolstacks();
    toolstacks.start(Via::Lab, &order(1)).await.unwrap();
    site.until_begun();
    let other = Order { to: "c".parse().unwrap(), ..order(1) };
    let error = toolstacks.start(Via::Lab, &other).await.unwrap_err().to_string();
    assert!(error.contains("is of guest r1 from a to b"), "{error}");
    assert!(toolstacks.state(&other).is_err() && toolstacks.stop(Via::Lab, &other).await.is_err());
    assert_eq!(toolstacks.state(&order(1)).unwrap(), State::Running);
    site.end("0");
    assert_eq!(site.ending(&order(1)), exit(0, ""));
    // A file that this daemon has not written.
    fs::write(site.file(1, "exit"), "{").unwrap();
    let error = toolstacks.state(&order(1)).unwrap_err().to_string();
    assert!(error.contains("is no file of this daemon"), "{error}");
    toolstacks.forget(1).unwrap_err();
}
