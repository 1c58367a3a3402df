//! A second kernel, for what the machine's own may lack: user-mode Linux (Debian's package `user-mode-linux`), an
//! ordinary program that boots in a second and sees this machine's files.

use std::os::unix::fs::PermissionsExt as _;
use std::os::unix::process::CommandExt as _;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

const LIMIT: Duration = Duration::from_secs(120);

/// Runs a test's body in such a kernel, with these modules: it becomes the only program there.
pub fn in_user_mode_linux(name: &str, modules: &str, body: impl FnOnce()) {
    if std::env::var_os("XENFLOW_TEST_KERNEL").is_some() {
        return body();
    }
    // Not under /tmp, which is covered inside.
    let dir = tempfile::tempdir_in(std::env::current_exe().unwrap().parent().unwrap()).unwrap();
    let script = format!(
        "#!/bin/sh\n\
         export PATH=/usr/sbin:/usr/bin:/sbin:/bin\n\
         mount -t proc proc /proc; mount -t sysfs sysfs /sys; mount -t devtmpfs devtmpfs /dev\n\
         mount -t tmpfs tmpfs /tmp; mount -t tmpfs tmpfs /run\n\
         mkdir -p /run/modules/lib/modules /run/results\n\
         ln -s /usr/lib/uml/modules/$(uname -r) /run/modules/lib/modules/\n\
         mount -t hostfs none /run/results -o {dir}\n\
         {{ modprobe -d /run/modules -a {modules} && XENFLOW_TEST_KERNEL=1 {exe} --exact {name} --nocapture; \
         echo $? >/run/results/code; }} >/run/results/log 2>&1\n\
         sync; echo o >/proc/sysrq-trigger; sleep 60\n",
        dir = dir.path().display(),
        exe = std::env::current_exe().unwrap().display(),
    );
    let init = dir.path().join("init");
    std::fs::write(&init, script).unwrap();
    std::fs::set_permissions(&init, std::fs::Permissions::from_mode(0o755)).unwrap();
    let mut uml = Command::new("linux.uml")
        .args(["mem=256M", "root=/dev/root", "rootfstype=hostfs", "rootflags=/", "ro", "quiet", "panic=1"])
        .args(["con=null", "ssl=null", "con0=null,fd:1", "noreboot"])
        .arg(format!("uml_dir={}/", dir.path().display()))
        .arg(format!("init={}", init.display()))
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .process_group(0)
        .spawn()
        .expect("linux.uml (user-mode-linux) is needed");
    let start = Instant::now();
    while uml.try_wait().unwrap().is_none() && start.elapsed() < LIMIT {
        std::thread::sleep(Duration::from_millis(50));
    }
    // It is many processes, in a group of their own.
    let _ =
        Command::new("kill").args(["-KILL", "--", &format!("-{}", uml.id())]).stderr(Stdio::null()).status();
    let _ = uml.wait();
    let read = |file: &str| std::fs::read_to_string(dir.path().join(file)).unwrap_or_default();
    assert_eq!(read("code").trim(), "0", "{name} in user-mode Linux:\n{}", read("log"));
}
