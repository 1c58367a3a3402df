//! The few messages that make tables and chains of nftables, as bytes: no program is needed for it.

use std::os::fd::OwnedFd;

use rustix::net::netlink::{NETFILTER, SocketAddrNetlink};
use rustix::net::{
    AddressFamily, RecvFlags, SendFlags, SocketFlags, SocketType, bind, recv, send, socket_with,
};

const BATCH_BEGIN: u16 = 0x10;
const BATCH_END: u16 = 0x11;
const SUBSYSTEM: u16 = 10;
const NEWTABLE: u16 = SUBSYSTEM << 8;
const DELTABLE: u16 = SUBSYSTEM << 8 | 2;
const NEWCHAIN: u16 = SUBSYSTEM << 8 | 3;
const DELCHAIN: u16 = SUBSYSTEM << 8 | 5;
const NESTED: u16 = 0x8000;

pub struct Chain {
    name: &'static str,
    hook: Option<(&'static str, u32)>,
    device: Option<&'static str>,
}

impl Chain {
    /// One that others jump to.
    pub fn plain(name: &'static str) -> Self {
        Self { name, hook: None, device: None }
    }

    pub fn hooked(name: &'static str, kind: &'static str, hook: u32) -> Self {
        Self { name, hook: Some((kind, hook)), device: None }
    }

    pub fn on(self, device: &'static str) -> Self {
        Self { device: Some(device), ..self }
    }
}

pub struct Nftables(OwnedFd);

fn attribute(kind: u16, value: &[u8]) -> Vec<u8> {
    let mut bytes = Vec::new();
    bytes.extend(u16::try_from(value.len() + 4).unwrap().to_ne_bytes());
    bytes.extend(kind.to_ne_bytes());
    bytes.extend(value);
    bytes.resize(bytes.len().next_multiple_of(4), 0);
    bytes
}

fn text(kind: u16, value: &str) -> Vec<u8> {
    attribute(kind, format!("{value}\0").as_bytes())
}

fn message(kind: u16, flags: u16, family: u8, resource: u16, attributes: &[u8]) -> Vec<u8> {
    let mut bytes = Vec::new();
    bytes.extend(u32::try_from(20 + attributes.len()).unwrap().to_ne_bytes());
    bytes.extend(kind.to_ne_bytes());
    bytes.extend((flags | 1).to_ne_bytes());
    bytes.extend([0; 8]);
    bytes.extend([family, 0]);
    bytes.extend(resource.to_be_bytes());
    bytes.extend(attributes);
    bytes
}

fn family(name: &str) -> u8 {
    match name {
        "inet" => 1,
        "ip" => 2,
        "netdev" => 5,
        "ip6" => 10,
        other => panic!("family {other}"),
    }
}

impl Nftables {
    pub fn open() -> Self {
        let socket =
            socket_with(AddressFamily::NETLINK, SocketType::RAW, SocketFlags::CLOEXEC, Some(NETFILTER))
                .expect("a kernel with nftables is needed");
        bind(&socket, &SocketAddrNetlink::new(0, 0)).unwrap();
        Self(socket)
    }

    /// A transaction of one, which must succeed.
    fn commit(&mut self, kind: u16, flags: u16, of_family: &str, attributes: &[u8]) {
        let mut batch = message(BATCH_BEGIN, 0, 0, SUBSYSTEM, &[]);
        // NLM_F_ACK
        batch.extend(message(kind, flags | 4, family(of_family), 0, attributes));
        batch.extend(message(BATCH_END, 0, 0, SUBSYSTEM, &[]));
        send(&self.0, &batch, SendFlags::empty()).unwrap();
        let mut answer = [0; 4096];
        recv(&self.0, &mut answer, RecvFlags::empty()).unwrap();
        let status = i32::from_ne_bytes(*answer[16..].first_chunk().unwrap());
        assert_eq!(status, 0, "nftables message {kind:#x}");
    }

    pub fn add_table(&mut self, family: &str, table: &str) {
        // NLM_F_CREATE
        self.commit(NEWTABLE, 0x400, family, &text(1, table));
    }

    pub fn delete_table(&mut self, family: &str, table: &str) {
        self.commit(DELTABLE, 0, family, &text(1, table));
    }

    pub fn add_chain(&mut self, family: &str, table: &str, chain: &Chain) {
        let mut body = [text(1, table), text(3, chain.name)].concat();
        if let Some((kind, number)) = chain.hook {
            let mut hook = [attribute(1, &number.to_be_bytes()), attribute(2, &[0; 4])].concat();
            hook.extend(chain.device.iter().flat_map(|device| text(3, device)));
            body.extend(attribute(4 | NESTED, &hook));
            body.extend(text(7, kind));
        }
        self.commit(NEWCHAIN, 0x400, family, &body);
    }

    pub fn delete_chain(&mut self, family: &str, table: &str, chain: &str) {
        self.commit(DELCHAIN, 0, family, &[text(1, table), text(3, chain)].concat());
    }
}
