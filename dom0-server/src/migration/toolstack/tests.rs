//! The words of toolstacks: those that they are given, and those that they say, as `xl` 4.17 and `virsh` 9.0 write them.

use super::*;

fn order(guest: &str) -> Order {
    Order { number: 7, guest: guest.parse().unwrap(), from: "a".parse().unwrap(), to: "b".parse().unwrap() }
}

fn config(text: &str) -> Config {
    let config: Config = toml::from_str(text).unwrap();
    config.check().unwrap();
    config
}

fn refused(text: &str) -> String {
    match toml::from_str::<Config>(text) {
        Ok(config) => config.check().unwrap_err().to_string(),
        Err(error) => error.message().to_owned(),
    }
}

#[test]
fn each_word_is_an_argument() {
    let order = order("r1");
    let config = |text: &str| {
        let config = config(text);
        let host = config.host(&order.to);
        (config, host)
    };
    let (plain, host) = config("");
    assert_eq!(plain.xl.ask(&order.guest), ["xl", "list", "r1"]);
    assert_eq!(plain.xl.moving(&order, &host), ["xl", "migrate", "r1", "b"]);
    assert_eq!(plain.virsh.ask(&order.guest), ["virsh", "--connect", "qemu:///system", "domstate", "r1"]);
    let flags = ["migrate", "--live", "--p2p", "--persistent", "--undefinesource"];
    let local = ["virsh", "--connect", "qemu:///system"];
    assert_eq!(
        plain.virsh.moving(&order, &host),
        [&local[..], &flags, &["r1", "qemu+tls://b/system"]].concat()
    );
    assert_eq!(
        plain.virsh.stopping(&order),
        Stop::Run(
            [&local[..], &["domjobabort", "r1"]].concat().iter().map(|word| (*word).to_owned()).collect()
        )
    );
    let (full, host) = config(
        r#"
        detach = "session"
        hosts = { b = "fd00::2" }
        xl = { command = "/usr/sbin/xl", transport = "ssh -o BatchMode=yes" }
        virsh = { connect = "qemu:///session", uri = "qemu+ssh://root@{host}/system", migrate_uri = "tcp://{host}" }
        lab = { command = ["/opt/mover", "two words"] }
        "#,
    );
    assert_eq!(
        full.xl.moving(&order, &host),
        ["/usr/sbin/xl", "migrate", "-s", "ssh -o BatchMode=yes", "r1", "fd00::2"]
    );
    let local = ["virsh", "--connect", "qemu:///session"];
    let memory = ["--migrateuri", "tcp://[fd00::2]"];
    assert_eq!(
        full.virsh.moving(&order, &host),
        [&local[..], &flags, &memory, &["r1", "qemu+ssh://root@[fd00::2]/system"]].concat()
    );
    let lab = full.lab.unwrap();
    assert_eq!(lab.ask(&order.guest), ["/opt/mover", "two words", "state", "r1"]);
    assert_eq!(lab.moving(&order, &host), ["/opt/mover", "two words", "move", "r1", "a", "b", "7"]);
}

#[test]
fn what_cannot_be_used_is_refused_with_its_value_and_the_rule() {
    for (text, says) in [
        ("lab = { command = [] }", "migration.toolstack.lab.command = \"\": a program"),
        ("lab = { command = [\"-x\"] }", "migration.toolstack.lab.command = \"-x\": a program"),
        ("lab = { command = [\"x\", \"a\\nb\"] }", "migration.toolstack.lab.command = \"a?b\": an argument"),
        ("xl = { command = \"xl list\" }", "migration.toolstack.xl.command = \"xl list\": a program"),
        ("xl = { transport = \"\" }", "migration.toolstack.xl.transport = \"\": a command"),
        ("xl = { transport = \"-x\" }", "migration.toolstack.xl.transport = \"-x\": a command"),
        ("virsh = { command = \"\" }", "migration.toolstack.virsh.command = \"\": a program"),
        ("virsh = { connect = \"a b\" }", "migration.toolstack.virsh.connect = \"a b\": a URI"),
        ("virsh = { uri = \"qemu+tls:///system\" }", "a URI of another host needs {host}"),
        ("virsh = { uri = \"--help{host}\" }", "migration.toolstack.virsh.uri = \"--help{host}\": a URI"),
        ("virsh = { migrate_uri = \"tcp://'{host}\" }", "migration.toolstack.virsh.migrate_uri"),
        ("hosts = { \"B b\" = \"b\" }", "migration.toolstack.hosts = \"B b\": a node's name"),
        ("hosts = { b = \"b; reboot\" }", "\"b; reboot\" is no host"),
        ("hosts = { b = \"-b\" }", "\"-b\" is no host"),
        ("hosts = { b = \"\" }", "\"\" is no host"),
        ("lab = { command = [\"x\"], shell = true }", "unknown field `shell`"),
        ("detach = \"fork\"", "unknown variant `fork`"),
    ] {
        let said = refused(text);
        assert!(said.contains(says), "{text}: {said}");
    }
}

#[test]
fn settings_are_printed_as_they_are_read() {
    for text in ["", "hosts = { b = \"fd00::2\" }\nlab = { command = [\"x\"] }\nxl = { transport = \"x\" }"] {
        let config = config(text);
        assert_eq!(self::config(&toml::to_string(&config).unwrap()), config);
    }
}

#[test]
fn a_guest_is_named_by_the_router_or_its_row() {
    let name: Name = "r1".parse().unwrap();
    let uuid = "2f2e1c0a-6a3b-4a8e-9d5a-0b6a1b2c3d4e";
    assert_eq!(Guest::of(&name, []).unwrap().as_str(), "r1");
    assert_eq!(Guest::of(&name, [("vm-uuid", "x"), (GUEST_KEY, uuid)]).unwrap().as_str(), uuid);
    for wrong in ["", "-r1", "a b", "r1\n", "r1;x", "$(x)", "../r1", "7", &"r".repeat(64), "é"] {
        let error = Guest::of(&name, [(GUEST_KEY, wrong)]).unwrap_err().to_string();
        assert!(
            error.contains("1 to 63 letters") && error.starts_with(&format!("\"{}\"", shown(wrong))),
            "{error}"
        );
    }
    // A router may be called so.
    assert!(Guest::of(&"7".parse().unwrap(), []).is_err());
    assert_eq!(Guest::of(&"7".parse().unwrap(), [(GUEST_KEY, "Router-7.x")]).unwrap().as_str(), "Router-7.x");
}

fn said(code: i32, stdout: &str, stderr: &str) -> Said {
    Said { code: Some(code), stdout: stdout.into(), stderr: stderr.into() }
}

#[test]
fn xl_says_where_a_domain_is() {
    let (xl, guest) = (Xl::default(), "r1".parse().unwrap());
    let list = |flags: &str| {
        let head = "Name                                        ID   Mem VCPUs\tState\tTime(s)\n";
        let line =
            format!("r1                                           3   128     1     {flags}       2.5\n");
        xl.hear(&guest, &said(0, &format!("{head}{line}"), "")).unwrap()
    };
    for (flags, is) in [
        ("r-----", Whereabouts::Running),
        ("-b----", Whereabouts::Running),
        ("------", Whereabouts::Running),
        ("--p---", Whereabouts::Suspended),
        ("---s--", Whereabouts::Suspended),
        ("----c-", Whereabouts::Suspended),
        ("-----d", Whereabouts::Gone),
        ("--ps-d", Whereabouts::Gone),
    ] {
        assert_eq!(list(flags), is, "{flags}");
    }
    for absent in ["r1 is an invalid domain identifier (rc=-6)\n", "Error: Domain 'r1' does not exist.\n"] {
        assert_eq!(xl.hear(&guest, &said(1, "", absent)).unwrap(), Whereabouts::Gone);
    }
    // Of another domain, or for another reason: nothing is known of this one.
    for wrong in [
        said(1, "", "r12 is an invalid domain identifier (rc=-6)\n"),
        said(1, "", "r1 is an invalid domain identifier (rc=-5)\n"),
        said(
            1,
            "",
            "xencall: error: Could not obtain handle on privileged command interface: No such file or directory\n",
        ),
        said(0, "", ""),
        said(0, "r1--incoming    3   128     1     --p---       2.5\n", ""),
        said(0, "r1    3   128     1     running       2.5\n", ""),
        said(0, "r1    3\n", ""),
        Said::default(),
    ] {
        xl.hear(&guest, &wrong).unwrap_err();
    }
    let error = xl.hear(&guest, &said(1, "", "first\ncannot init xl context\n\n")).unwrap_err().to_string();
    assert_eq!(error, "\"xl list r1\": exit code 1: cannot init xl context");
}

#[test]
fn virsh_says_where_a_domain_is() {
    let (virsh, guest) = (Virsh::default(), "r1".parse().unwrap());
    for (state, is) in [
        ("running", Whereabouts::Running),
        ("idle", Whereabouts::Running),
        ("in shutdown", Whereabouts::Running),
        ("paused", Whereabouts::Suspended),
        ("crashed", Whereabouts::Suspended),
        ("pmsuspended", Whereabouts::Suspended),
        ("shut off", Whereabouts::Gone),
    ] {
        assert_eq!(virsh.hear(&guest, &said(0, &format!("{state}\n\n"), "")).unwrap(), is, "{state}");
    }
    assert_eq!(
        virsh.hear(&guest, &said(1, "", "error: failed to get domain 'r1'\n\n")).unwrap(),
        Whereabouts::Gone
    );
    for wrong in [
        said(1, "", "error: failed to get domain 'r12'\n"),
        said(
            1,
            "",
            "error: failed to connect to the hypervisor\nerror: Failed to connect socket to '/var/run/libvirt/libvirt-sock': No such file or directory\n",
        ),
        said(0, "no state\n", ""),
        said(0, "", ""),
    ] {
        virsh.hear(&guest, &wrong).unwrap_err();
    }
}

#[test]
fn another_command_says_one_of_three_words() {
    let (lab, guest) = (Lab { command: vec!["mover".into()] }, "r1".parse().unwrap());
    for (word, is) in [
        ("running\n", Whereabouts::Running),
        ("suspended", Whereabouts::Suspended),
        ("gone\n", Whereabouts::Gone),
    ] {
        assert_eq!(lab.hear(&guest, &said(0, word, "")).unwrap(), is);
    }
    lab.hear(&guest, &said(0, "running away", "")).unwrap_err();
    lab.hear(&guest, &said(2, "gone", "")).unwrap_err();
}
