//! What `xl migrate` and `xl migrate-receive` say to each other, as far as it is looked at: the header before the guest's memory, and
//! that the guest is here whole. Pure; from Xen's `tools/xl/xl.h` and `xl_migrate.c`.

use serde_json::Value;

/// Begins the header.
const MAGIC: &[u8; 32] = b"Xen saved domain, xl format\n \0 \r";
/// Behind it, in the sender's order of bytes: this number, two words of flags, how many bytes of options follow.
const ORDER: u32 = 0x0102_0304;
const FIXED: usize = 32 + 4 * 4;
/// The flag which says that the options' configuration is JSON.
const JSON: u32 = 1;
/// Options of more bytes are not looked at.
const MAX_OPTIONS: usize = 1 << 20;

/// What the receiver says first, without a closing zero.
const BANNER: &[u8] = b"xl migration receiver ready, send binary domain data.\n";
/// The guest is here and waits for a word; with its closing zero.
const READY: &[u8] = b"domain received, ready to unpause\0";
/// Of the same length, and something else: the sender resumes its guest.
pub(super) const NOT_READY: &[u8] = b"no: see what xenflow says above..\0";

/// What the header says of a guest.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(super) struct Guest {
    pub(super) name: Option<String>,
    /// Of its interfaces.
    pub(super) macs: Vec<String>,
}

/// The header, as it comes.
#[derive(Debug, Default)]
pub(super) struct Header(Vec<u8>);

impl Header {
    /// Takes bytes; whether it is whole by now, or will never be.
    pub(super) fn take(&mut self, bytes: &[u8]) -> bool {
        self.0.extend_from_slice(bytes);
        bytes.is_empty() || self.end().is_none_or(|end| self.0.len() >= end)
    }

    /// What it says; none: nothing that is understood.
    pub(super) fn guest(&self) -> Option<Guest> {
        let options = self.0.get(FIXED..self.end()?)?;
        if self.word(1)? & JSON == 0 {
            return None;
        }
        let length = usize::try_from(self.number(options.first_chunk()?)).ok()?;
        let text = options.get(4..)?.get(..length)?;
        let text = text.strip_suffix(b"\0").unwrap_or(text);
        let config: Value = serde_json::from_slice(text).ok()?;
        let name = config["c_info"]["name"].as_str().map(str::to_owned);
        let nics = config["nics"].as_array().into_iter().flatten();
        Some(Guest { name, macs: nics.filter_map(|nic| nic["mac"].as_str().map(str::to_owned)).collect() })
    }

    /// Where it ends; as far as it is known. None: it is no header that can be read.
    fn end(&self) -> Option<usize> {
        let magic = self.0.get(..MAGIC.len().min(self.0.len()))?;
        if !MAGIC.starts_with(magic) {
            return None;
        }
        if self.0.len() < FIXED {
            return Some(FIXED);
        }
        if self.word(0)? != ORDER {
            return None;
        }
        let options = usize::try_from(self.word(3)?).ok().filter(|length| *length <= MAX_OPTIONS)?;
        Some(FIXED + options)
    }

    fn word(&self, index: usize) -> Option<u32> {
        Some(self.number(self.0.get(MAGIC.len() + 4 * index..)?.first_chunk()?))
    }

    fn number(&self, bytes: &[u8; 4]) -> u32 {
        let is_little = self.0.get(MAGIC.len()..).is_some_and(|rest| rest.starts_with(&ORDER.to_le_bytes()));
        if is_little { u32::from_le_bytes(*bytes) } else { u32::from_be_bytes(*bytes) }
    }
}

/// What the receiver says: the banner, that the guest is here, and then what nobody holds up any more.
#[derive(Debug, Default)]
pub(super) struct Answers {
    /// Bytes of the banner and of [`READY`] that have come.
    seen: usize,
    /// They were something else: all of it passes.
    is_foreign: bool,
}

impl Answers {
    /// Takes bytes: those that may pass, and whether with them the guest was said to be here. What is said of that passes as a whole.
    pub(super) fn take(&mut self, bytes: &[u8]) -> (Vec<u8>, bool) {
        let mut pass = Vec::new();
        let mut is_ready = false;
        for byte in bytes {
            let at = self.seen;
            let expected = BANNER.get(at).or_else(|| READY.get(at.checked_sub(BANNER.len())?));
            match expected {
                Some(expected) if !self.is_foreign && expected == byte => {
                    self.seen += 1;
                    let held = self.seen.saturating_sub(BANNER.len());
                    match held {
                        0 => pass.push(*byte),
                        _ if held == READY.len() => {
                            pass.extend_from_slice(READY);
                            is_ready = true;
                        }
                        _ => {}
                    }
                }
                Some(_) if !self.is_foreign => {
                    // What was held of it comes first.
                    let held = at.saturating_sub(BANNER.len());
                    pass.extend_from_slice(READY.get(..held).unwrap_or_default());
                    pass.push(*byte);
                    self.is_foreign = true;
                }
                _ => pass.push(*byte),
            }
        }
        (pass, is_ready)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const CONFIG: &str = r#"{"c_info":{"type":"pvh","name":"r1"},"nics":[{"devid":0,"mac":"00:16:3e:00:00:10"},{"mac":"00:16:3e:00:00:11"}]}"#;

    fn header(order: impl Fn(u32) -> [u8; 4], flags: u32, config: &str) -> Vec<u8> {
        let config = [config.as_bytes(), b"\0"].concat();
        let length = u32::try_from(config.len()).unwrap();
        let words = [ORDER, flags, 0, length + 4, length];
        [MAGIC.as_slice(), &words.map(order).concat(), &config].concat()
    }

    #[test]
    fn a_header_names_its_guest_however_it_comes() {
        let expected = Guest {
            name: Some("r1".into()),
            macs: vec!["00:16:3e:00:00:10".into(), "00:16:3e:00:00:11".into()],
        };
        for bytes in [header(u32::to_le_bytes, 3, CONFIG), header(u32::to_be_bytes, 3, CONFIG)] {
            for size in [1, 7, bytes.len()] {
                let mut header = Header::default();
                let pieces: Vec<&[u8]> = bytes.chunks(size).collect();
                let (last, before) = pieces.split_last().unwrap();
                assert!(before.iter().all(|piece| !header.take(piece)), "pieces of {size}");
                assert!(header.take(last));
                assert_eq!(header.guest(), Some(expected.clone()));
            }
            // Memory behind it changes nothing.
            let mut header = Header::default();
            assert!(header.take(&[bytes, vec![0xa5; 100]].concat()));
            assert_eq!(header.guest(), Some(expected.clone()));
        }
    }

    #[test]
    fn what_is_no_header_is_waited_for_no_longer_than_it_takes_to_see() {
        for bytes in [
            b"Xen saved domain, xm format".to_vec(),
            [MAGIC.as_slice(), &[9; 16]].concat(),
            [MAGIC.as_slice(), &ORDER.to_le_bytes(), &[0; 8], &u32::MAX.to_le_bytes()].concat(),
        ] {
            let mut header = Header::default();
            assert!(header.take(&bytes), "{bytes:?}");
            assert_eq!(header.guest(), None);
        }
        for (flags, config) in [(2, CONFIG), (3, "name = 'r1'")] {
            let mut read = Header::default();
            assert!(read.take(&header(u32::to_le_bytes, flags, config)));
            assert_eq!(read.guest(), None);
        }
        // It ends before it is whole.
        let mut header = Header::default();
        assert!(!header.take(&MAGIC[..20]));
        assert!(header.take(b""));
    }

    #[test]
    fn only_the_word_that_the_guest_is_here_is_held() {
        let all = [BANNER, READY, b"my copy"].concat();
        for size in [1, 10, all.len()] {
            let mut answers = Answers::default();
            let (mut passed, mut ready_behind) = (Vec::new(), None);
            for piece in all.chunks(size) {
                let (pass, is_ready) = answers.take(piece);
                if is_ready {
                    ready_behind = Some(passed.len());
                }
                passed.extend(pass);
            }
            assert_eq!(passed, all);
            // Nothing of it has gone before it is whole.
            assert!(ready_behind.unwrap() <= BANNER.len(), "{size}: {ready_behind:?}");
        }
        assert_eq!(READY.len(), NOT_READY.len());
        assert_ne!(READY, NOT_READY);
    }

    #[test]
    fn words_of_another_receiver_pass() {
        for words in [&b"another receiver"[..], &[BANNER, b"domain received, but"].concat()] {
            let mut answers = Answers::default();
            let passed: Vec<u8> = words.chunks(3).flat_map(|piece| answers.take(piece).0).collect();
            assert_eq!(passed, words);
        }
    }
}
