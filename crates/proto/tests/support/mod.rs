//! What tests of both schemas need: hexadecimal text, and files that never change.
#![allow(clippy::unwrap_used, clippy::disallowed_methods, unreachable_pub)]

fn hex(bytes: &[u8]) -> String {
    bytes.chunks(32).map(|line| line.iter().map(|b| format!("{b:02x}")).collect::<String>() + "\n").collect()
}

/// The bytes of hexadecimal digits, whatever stands between them.
pub fn unhex(text: &str) -> Vec<u8> {
    let digits: Vec<u8> = text.bytes().filter(u8::is_ascii_hexdigit).collect();
    digits.chunks(2).map(|pair| u8::from_str_radix(std::str::from_utf8(pair).unwrap(), 16).unwrap()).collect()
}

/// Compares with `golden/<name>.hex`; a message without a file gets one, and the test fails once to say so.
pub fn check_golden(name: &str, encoded: &[u8]) {
    let path = format!("{}/golden/{name}.hex", env!("CARGO_MANIFEST_DIR"));
    match std::fs::read_to_string(&path) {
        Ok(golden) => assert_eq!(hex(encoded), golden, "{name}: version 1 is frozen"),
        Err(error) => {
            std::fs::write(&path, hex(encoded)).unwrap();
            panic!("{name}: no golden file ({error}); written now, look at it and commit it");
        }
    }
}

/// Every file of a directory (hexadecimal, `#` comments); its name says how many messages are accepted of it:
/// `<what>.<count>.hex`.
pub fn corpus(dir: &str) -> Vec<(String, Vec<u8>, usize)> {
    let entries = std::fs::read_dir(format!("{}/{dir}", env!("CARGO_MANIFEST_DIR"))).unwrap();
    let file = |entry: std::fs::DirEntry| {
        let text = std::fs::read_to_string(entry.path()).unwrap();
        let code: String = text.lines().map(|line| line.split('#').next().unwrap()).collect();
        let name = entry.file_name().into_string().unwrap();
        let accepted = name.split('.').nth(1).unwrap().parse().unwrap();
        (name, unhex(&code), accepted)
    };
    entries.map(|entry| file(entry.unwrap())).collect()
}
