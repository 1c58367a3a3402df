//! The program under test.

use std::os::fd::OwnedFd;
use std::path::PathBuf;
use std::process::Child;
use std::time::Duration;

use rustix::io::Errno;
use rustix::net::{RecvFlags, recv};
use rustix::process::{Pid, PidfdFlags, PidfdGetfdFlags, Signal, kill_process, pidfd_getfd, pidfd_open};

use super::until;

/// The running program; ends with it, and shows its log if the test fails.
pub struct Client {
    pub child: Child,
    pub(super) log: PathBuf,
}

impl Client {
    pub fn log(&self) -> String {
        std::fs::read_to_string(&self.log).unwrap()
    }

    /// Changes something of which the client hears nothing: what its socket is told meanwhile is taken from it, and the
    /// kernel knows of no loss.
    pub fn deafen(&self, change: impl FnOnce()) {
        let pid = Pid::from_child(&self.child);
        let socket = self.subscription();
        let mut buffer = vec![0; 64 << 10];
        let mut read = |flags| match recv(&socket, buffer.as_mut_slice(), flags | RecvFlags::DONTWAIT) {
            Ok(_) => true,
            Err(Errno::AGAIN) => false,
            Err(error) => panic!("the client's socket: {error}"),
        };
        loop {
            self.stop();
            if !read(RecvFlags::PEEK) {
                break;
            }
            // What it has not read yet is its own.
            kill_process(pid, Signal::CONT).unwrap();
            std::thread::sleep(Duration::from_millis(20));
        }
        change();
        assert!(read(RecvFlags::empty()), "the kernel told nothing");
        while read(RecvFlags::empty()) {}
        kill_process(pid, Signal::CONT).unwrap();
    }

    /// Makes a change while the client reads nothing: what does not fit in its buffer is dropped.
    pub fn while_stopped(&self, change: impl FnOnce()) {
        self.stop();
        change();
        kill_process(Pid::from_child(&self.child), Signal::CONT).unwrap();
    }

    /// Stops the process, and waits until none of it runs.
    fn stop(&self) {
        kill_process(Pid::from_child(&self.child), Signal::STOP).unwrap();
        let stat = format!("/proc/{}/stat", self.child.id());
        until("stop", || std::fs::read_to_string(&stat).unwrap().contains(") T "));
    }

    /// The client's netlink socket: the only one of rtnetlink that is subscribed to routes.
    fn subscription(&self) -> OwnedFd {
        const ROUTES: u32 = 1 << (7 - 1);
        let table = std::fs::read_to_string(format!("/proc/{}/net/netlink", self.child.id())).unwrap();
        let inodes: Vec<String> = table
            .lines()
            .map(|line| line.split_whitespace().collect::<Vec<_>>())
            .filter(|it| it[1] == "0" && u32::from_str_radix(it[3], 16).is_ok_and(|it| it & ROUTES != 0))
            .map(|it| format!("socket:[{}]", it[it.len() - 1]))
            .collect();
        let files = std::fs::read_dir(format!("/proc/{}/fd", self.child.id())).unwrap().map(Result::unwrap);
        let of_client = |file: &std::fs::DirEntry| {
            std::fs::read_link(file.path())
                .is_ok_and(|link| inodes.iter().any(|it| link.as_os_str() == it.as_str()))
        };
        let [file] = files.filter(of_client).collect::<Vec<_>>().try_into().expect("one such socket");
        let number = file.file_name().to_str().unwrap().parse().unwrap();
        let process = pidfd_open(Pid::from_child(&self.child), PidfdFlags::empty()).unwrap();
        pidfd_getfd(process, number, PidfdGetfdFlags::empty()).unwrap()
    }

    pub fn wait_log(&self, text: &str) {
        until(&format!("log line with \"{text}\""), || self.log().contains(text));
    }
}

impl Drop for Client {
    fn drop(&mut self) {
        self.child.kill().unwrap();
        self.child.wait().unwrap();
        if std::thread::panicking() {
            eprintln!("{}", self.log());
        }
    }
}
