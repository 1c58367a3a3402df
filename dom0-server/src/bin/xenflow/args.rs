//! The command line, declared.
//!
//! Values stay text where the rules of the product judge them, so that every refusal has the same words.

use std::net::IpAddr;
use std::path::PathBuf;

use clap::{Parser, Subcommand, ValueEnum};

use crate::moves::MoveCommand;
use crate::node::NodeCommand;
use crate::nouns::{
    AccessCommand, ClassCommand, NetworkCommand, RouterCommand, SegmentCommand, UplinkCommand, VifCommand,
};

/// What every command takes stands apart from what it takes itself.
const COMMON: &str = "Common options";

/// Configures the virtual networks, routers and ports of XenFlow, and shows how they are.
#[derive(Debug, Parser)]
#[command(name = "xenflow", version, arg_required_else_help = true)]
pub(crate) struct Args {
    #[command(flatten)]
    pub(crate) db: Target,
    /// Print data as JSON
    #[arg(long, global = true, help_heading = COMMON)]
    pub(crate) json: bool,
    /// Give up after so many seconds
    #[arg(long, global = true, help_heading = COMMON, value_name = "SECONDS", default_value_t = 10, value_parser = clap::value_parser!(u32).range(1..=3600))]
    pub(crate) timeout: u32,
    /// After a change, wait until every node that reports has it in its switch
    ///
    /// The nodes are those of 'show node' that have reported a version. A node that is behind when --timeout is over is
    /// named, and the exit code is 1; the change stays made. A change of nothing ('apply' of what is there already) waits
    /// for the state as it is. With no node at all there is nothing to wait for: that is said on standard error, and the
    /// exit code is 0, as of 'ovn-nbctl --wait=hv' without a chassis. Commands that only read do not wait.
    #[arg(long, global = true, help_heading = COMMON)]
    pub(crate) wait: bool,
    #[command(subcommand)]
    pub(crate) command: Command,
}

/// Where the database is, and how to speak with it.
#[derive(Debug, Clone, clap::Args)]
pub(crate) struct Target {
    /// OVSDB server with the XenFlow database: unix:PATH, tcp:IP[:PORT] or ssl:IP[:PORT]; several with commas
    #[arg(
        long = "db",
        global = true,
        help_heading = COMMON,
        env = "XENFLOW_DB",
        value_name = "REMOTE",
        default_value_t = crate::cluster::default_remote()
    )]
    pub(crate) remotes: String,
    /// Key of --certificate, for ssl: (PEM)
    #[arg(long, global = true, help_heading = COMMON, env = "XENFLOW_KEY", value_name = "FILE")]
    pub(crate) private_key: Option<PathBuf>,
    /// Who this is, for ssl: a node's or an operator's certificate (PEM)
    #[arg(long, global = true, help_heading = COMMON, env = "XENFLOW_CERT", value_name = "FILE")]
    pub(crate) certificate: Option<PathBuf>,
    /// The authority whose nodes are believed, for ssl: (PEM)
    #[arg(long, global = true, help_heading = COMMON, env = "XENFLOW_CA", value_name = "FILE")]
    pub(crate) ca_cert: Option<PathBuf>,
    /// `--db` was said, not only its default.
    #[arg(skip)]
    pub(crate) is_named: bool,
}

#[derive(Debug, Subcommand)]
pub(crate) enum Command {
    /// Create the XenFlow database in the running local ovsdb-server; does only what is not done yet
    Init {
        /// File of the database, created if it is not there
        #[arg(long, value_name = "FILE", default_value = "/etc/openvswitch/xenflow.db")]
        db_file: PathBuf,
        /// Control socket of ovsdb-server; by default ovsdb-server.PID.ctl beside the socket of --db
        #[arg(long, value_name = "SOCKET")]
        ctl: Option<PathBuf>,
        /// Do nothing if these settings of the daemon name another database than this host's
        #[arg(long, value_name = "FILE")]
        unless: Option<PathBuf>,
        /// Have Open vSwitch open the database whenever it starts: --extra-dbs in its settings
        #[arg(long)]
        persist: bool,
        /// Take that back, and do nothing else
        #[arg(long, conflicts_with = "persist")]
        forget: bool,
        /// Settings of Open vSwitch, for --persist and --forget
        #[arg(long, value_name = "FILE", default_value = "/etc/default/openvswitch-switch")]
        defaults: PathBuf,
    },
    /// A database that several hosts keep together
    #[command(subcommand)]
    Cluster(ClusterCommand),
    #[command(flatten)]
    Database(DatabaseCommand),
    /// Look for what goes wrong in practice, and say what to do; exit code 1 if a check failed
    ///
    /// Each finding is OK, WARN (it works, and may not for long, or less than it could) or FAIL, with what was seen and, where
    /// it is not OK, what to do. --timeout is for each question: the database of Open vSwitch, the bridge, each server of the
    /// XenFlow database, its rows; what does not answer is a finding itself. Where meters may be dropping it looks twice, 6 s
    /// apart.
    Doctor {
        /// Only this host, not the XenFlow database
        #[arg(long)]
        host_only: bool,
        /// Settings of the host's daemon
        #[arg(long, value_name = "FILE", default_value = "/etc/xenflow/dom0.toml")]
        config: PathBuf,
    },
    /// Networks, routers, punts, nodes and migrations as they are now, by rate, and how this host's uplinks are shared
    Top {
        /// Seconds between two looks; daemons write every 5
        #[arg(long, value_name = "SECONDS", default_value_t = 5, value_parser = clap::value_parser!(u32).range(1..=3600))]
        interval: u32,
        /// Print one sample after one interval (two, if no node has written in the first), and end
        #[arg(long)]
        once: bool,
        #[command(flatten)]
        socket: SocketArg,
    },
    #[command(flatten)]
    Move(MoveCommand),
    #[command(flatten)]
    Host(HostCommand),
    /// The private certificate authority
    #[command(subcommand)]
    Pki(PkiCommand),
    /// Receive a guest of 'xl migrate', and have it wait until this node is ready; xl-migrate-transport runs this
    #[command(hide = true)]
    XlReceive {
        #[command(flatten)]
        socket: SocketArg,
        /// What receives it, as xl says
        #[arg(required = true, trailing_var_arg = true, allow_hyphen_values = true)]
        command: Vec<String>,
    },
    /// Print the completions of a shell
    Completions {
        /// Which shell
        shell: clap_complete::Shell,
    },
    /// Write the manual pages: one for each command
    Man {
        /// Into this directory, made if it is not there
        dir: PathBuf,
    },
}

/// Questions to the daemon of this host.
#[derive(Debug, Subcommand)]
pub(crate) enum HostCommand {
    /// How this host is: its daemon, its switch, the databases, the routers' sessions
    Status {
        #[command(flatten)]
        socket: SocketArg,
    },
    /// A router's routes, as its guest says, and what becomes of their packets
    Routes {
        /// The router
        router: String,
        /// Only those of a prefix and within it, or those that an address may be looked up by
        prefix: Option<String>,
        #[command(flatten)]
        socket: SocketArg,
    },
    /// What happened, one line each, the newest last; with --json one object each
    ///
    /// The daemon of this host keeps its last 4,096 events in memory: what it logs when something changes, with a kind
    /// ('journalctl -u xenflow-dom0 XENFLOW_EVENT=KIND' has older ones). A line says when, on which node, the kind, what it is
    /// about, and a sentence. With --all it is what changes in the rows that all nodes write; the database keeps no history,
    /// so before that stands what the rows say the time of: since when sessions are as they are, daemons run, nodes are silent.
    Events(EventsArgs),
    /// The flows that a router should have in the switch, as ovs-ofctl writes them
    Flows {
        /// The router
        router: String,
        #[command(flatten)]
        socket: SocketArg,
    },
    /// What becomes of a packet at each table, as XenFlow has it and as the switch does it; fails where the two differ. 'explain
    /// sla NETWORK': why a network gets what it gets
    ///
    /// Exit code 1: XenFlow and the switch differ on a node, or its switch does not answer. A packet that goes on to another
    /// node is followed there with --host; without it the exit code is 0 if all is well so far, and what would follow it is
    /// printed ("next" in --json). --timeout is for each question: each node's daemon, and the XenFlow database, which is asked
    /// for the next node.
    Explain(Box<ExplainArgs>),
    /// Whether a guest may come to this node, or run on here; the hooks of toolstacks ask
    ///
    /// It waits for at most --timeout while a planned migration of its router makes this node ready. Exit code 1: it is not, and why. A
    /// move that is not planned has nothing to wait for, and without a daemon everything passes.
    #[command(hide = true)]
    Arrival {
        /// Address of an interface of the guest; several by saying it again
        #[arg(long = "mac", value_name = "MAC", required = true)]
        macs: Vec<String>,
        /// The interfaces are plugged in
        #[arg(long)]
        plugged: bool,
        #[command(flatten)]
        socket: SocketArg,
    },
}

/// A packet, or something else.
#[derive(Debug, clap::Args)]
#[command(group = clap::ArgGroup::new("packet").required(true).args(["dst", "frame"]), subcommand_negates_reqs = true)]
pub(crate) struct ExplainArgs {
    #[command(subcommand)]
    pub(crate) why: Option<WhyCommand>,
    /// The access port, vif or OVS port by which it comes in
    #[arg(long, value_name = "NAME", required = true)]
    pub(crate) from: Option<String>,
    /// Its destination address
    #[arg(long, value_name = "ADDRESS")]
    pub(crate) dst: Option<IpAddr>,
    /// Its source address; the sender's, as a router knows it, if none is given
    #[arg(long, value_name = "ADDRESS", conflicts_with = "frame")]
    pub(crate) src: Option<IpAddr>,
    /// udp, tcp or icmp; udp if none is given
    #[arg(long, conflicts_with = "frame")]
    pub(crate) proto: Option<String>,
    /// Its source port
    #[arg(long, value_name = "PORT", conflicts_with = "frame")]
    pub(crate) sport: Option<u16>,
    /// Its destination port
    #[arg(long, value_name = "PORT", conflicts_with = "frame")]
    pub(crate) dport: Option<u16>,
    /// Its TTL or hop limit; 64 if none is given
    #[arg(long, conflicts_with = "frame")]
    pub(crate) ttl: Option<u8>,
    /// The router that it is sent to, where the segment has several
    #[arg(long, conflicts_with = "frame")]
    pub(crate) router: Option<String>,
    /// Its destination MAC address, where that is no router's
    #[arg(long, value_name = "MAC", conflicts_with_all = ["router", "frame"])]
    pub(crate) dst_mac: Option<String>,
    /// All of it, in hexadecimal digits from its destination MAC address on
    #[arg(long, value_name = "HEX")]
    pub(crate) frame: Option<String>,
    /// Control socket of another node's daemon, forwarded here: the packet is followed to that node
    #[arg(long = "host", value_name = "NODE=PATH")]
    pub(crate) hosts: Vec<String>,
    #[command(flatten)]
    pub(crate) socket: SocketArg,
}

/// Which events, and from where.
#[derive(Debug, clap::Args)]
pub(crate) struct EventsArgs {
    /// Go on until interrupted, through restarts of the daemon
    #[arg(short, long)]
    pub(crate) follow: bool,
    /// Of all nodes: what the database of --db shows of them, instead of what this host's daemon keeps; also if --db is said
    #[arg(long)]
    pub(crate) all: bool,
    /// Only of this router
    #[arg(long, value_name = "ROUTER")]
    pub(crate) router: Option<String>,
    /// Only of this kind, as session-lost; several with commas or by saying it again
    #[arg(long = "kind", value_name = "KIND", value_delimiter = ',')]
    pub(crate) kinds: Vec<String>,
    #[command(flatten)]
    pub(crate) socket: SocketArg,
}

/// Which daemon.
#[derive(Debug, clap::Args)]
pub(crate) struct SocketArg {
    /// Control socket of the daemon
    #[arg(long, env = "XENFLOW_SOCKET", value_name = "PATH", default_value = dom0_server::config::CONTROL_SOCKET)]
    pub(crate) socket: PathBuf,
}

/// Commands on the contents of the database.
#[derive(Debug, Subcommand)]
pub(crate) enum DatabaseCommand {
    /// Virtual networks
    #[command(subcommand)]
    Network(NetworkCommand),
    /// Virtual links of a network: one VLAN each
    #[command(subcommand)]
    Segment(SegmentCommand),
    /// Virtual routers of a network. Its name stands in its certificate, too; a new one gets the lowest free number
    #[command(subcommand)]
    Router(RouterCommand),
    /// Interfaces of routers. Its name is external_ids:iface-id of its OVS interface
    #[command(subcommand)]
    Vif(VifCommand),
    /// Ports of end hosts and ordinary VMs. Its name is external_ids:iface-id of its OVS interface
    #[command(subcommand)]
    Access(AccessCommand),
    /// Trunks of nodes
    #[command(subcommand)]
    Uplink(UplinkCommand),
    /// Hosts, by what their daemons report
    #[command(subcommand)]
    Node(NodeCommand),
    /// Contracts of networks: what they get of every uplink whenever they want it, and at most
    #[command(subcommand)]
    Sla(SlaCommand),
    /// Parts of a network's traffic with contracts of their own
    #[command(subcommand)]
    Class(ClassCommand),
    /// Make the database as a description in TOML says; changes and removes only what belongs to that description
    Apply {
        /// The description; - for standard input
        #[arg(short, long, value_name = "FILE")]
        file: PathBuf,
        /// Print the differences, change nothing
        #[arg(long)]
        dry_run: bool,
        /// Take over what is there by the same name and belongs to nobody, or to another description
        #[arg(long)]
        adopt: bool,
    },
    /// Everything on one page, with what the daemons report; or one kind of things in detail
    Show {
        #[command(subcommand)]
        what: Option<ShowCommand>,
    },
}

#[derive(Debug, Subcommand)]
pub(crate) enum ClusterCommand {
    /// Make this host the first member: with the contents of the embedded database, if there is one
    Init {
        #[command(flatten)]
        member: MemberArgs,
        /// File of the embedded database
        #[arg(long, value_name = "FILE", default_value = EMBEDDED)]
        from: PathBuf,
        /// TCP port for clients, on every member
        #[arg(long, value_name = "PORT", default_value_t = 6660, value_parser = clap::value_parser!(u16).range(1..))]
        client_port: u16,
    },
    /// Make this host one more member
    Join {
        #[command(flatten)]
        member: MemberArgs,
        /// A member: IP or ssl:IP:PORT; several with commas
        #[arg(long = "peer", value_name = "MEMBER", required = true, value_delimiter = ',')]
        peers: Vec<String>,
    },
    /// Show the members, the leader, and whether this host is in contact with them
    Status {
        #[command(flatten)]
        place: PlaceArgs,
    },
    /// End another member's membership: of one that is gone for good
    Kick {
        /// Its identifier or address, as 'status' shows them
        server: String,
        #[command(flatten)]
        place: PlaceArgs,
        /// Although there is a connection to it
        #[arg(long)]
        force: bool,
    },
    /// End this host's membership, and remove its copy of the database
    Leave {
        #[command(flatten)]
        place: PlaceArgs,
        /// This is the last member: end the cluster, and keep the database as the embedded one
        #[arg(long)]
        last: bool,
        /// Where to keep it; 'xenflow init' serves it from there
        #[arg(long, value_name = "FILE", default_value = EMBEDDED)]
        to: PathBuf,
    },
}

const EMBEDDED: &str = "/etc/openvswitch/xenflow.db";

/// Of which member.
#[derive(Debug, clap::Args)]
pub(crate) struct PlaceArgs {
    /// Settings of xenflow-ovsdb.service
    #[arg(long, value_name = "FILE", default_value = crate::cluster::SETTINGS)]
    pub(crate) settings: PathBuf,
    /// Leave systemd alone: say what to start or stop
    #[arg(long)]
    pub(crate) no_systemd: bool,
}

/// A member to make. Its certificate is that of --certificate, --private-key and --ca-cert, or else of the daemon.
#[derive(Debug, clap::Args)]
pub(crate) struct MemberArgs {
    /// Address of this host by which the other members reach it
    #[arg(long, value_name = "IP")]
    pub(crate) address: String,
    /// TCP port for the other members
    #[arg(long, default_value_t = crate::cluster::PORT, value_parser = clap::value_parser!(u16).range(1..))]
    pub(crate) port: u16,
    /// This member's copy of the database
    #[arg(long, value_name = "FILE", default_value = "/var/lib/xenflow/cluster.db")]
    pub(crate) db_file: PathBuf,
    /// Directory of its sockets
    #[arg(long, value_name = "DIR", default_value = "/run/xenflow")]
    pub(crate) rundir: PathBuf,
    /// Settings of the daemon, for its certificate
    #[arg(long, value_name = "FILE", default_value = "/etc/xenflow/dom0.toml")]
    pub(crate) config: PathBuf,
    #[command(flatten)]
    pub(crate) place: PlaceArgs,
}

#[derive(Debug, Subcommand)]
pub(crate) enum ShowCommand {
    /// Routers: session, tables, vifs, counters, and what the guest forwards itself and why
    Router {
        /// Only this one
        name: Option<String>,
    },
    /// Segments: their ports and counters
    Segment {
        /// Only this one
        name: Option<String>,
    },
    /// Networks: their segments, routers and counters
    Network {
        /// Only this one
        name: Option<String>,
    },
    /// Nodes: versions, when last seen, whether they are behind, problems, uplinks and counters
    Node {
        /// Only this one
        name: Option<String>,
    },
}

#[derive(Debug, Subcommand)]
pub(crate) enum SlaCommand {
    /// Change a network's contract; what is not given stays as it is
    Set {
        /// The network
        network: String,
        #[command(flatten)]
        contract: crate::nouns::ContractArgs,
    },
    /// List all
    List,
    /// How this node's uplinks are shared: by network and class, what is promised, had and to be expected, and since when
    ///
    /// The daemon of this host answers. OBTAINED is the mean over the last few looks, EXPECTED what the law gives of what the
    /// uplink carried, FITNESS 1 - |1 - obtained/expected|. A queue is idle, met (it has what it wants, or its part), or short.
    Show {
        /// Only this network
        network: Option<String>,
        #[command(flatten)]
        socket: SocketArg,
    },
    /// Draw the last hour of networks on this node's uplinks beside what they are promised, as SVG; --json: the points
    Plot {
        /// The networks, at most eight; all if none is named
        networks: Vec<String>,
        /// Where to; - for standard output
        #[arg(long, value_name = "FILE", default_value = "-")]
        svg: PathBuf,
        #[command(flatten)]
        socket: SocketArg,
    },
}

/// Why a thing is as it is.
#[derive(Debug, Subcommand)]
pub(crate) enum WhyCommand {
    /// Why a network gets what it gets of this node's uplinks: who wants what, who gets what, and what bounds it
    Sla {
        /// The network
        network: String,
        #[command(flatten)]
        socket: SocketArg,
    },
}

#[derive(Debug, Subcommand)]
pub(crate) enum PkiCommand {
    /// Make an authority: ca.pem, ca.key and an empty list of what is revoked, crl.pem
    Init {
        /// Its directory
        #[arg(default_value = PKI_DIR)]
        dir: PathBuf,
    },
    /// Issue a certificate: NAME.pem and NAME.key
    Issue(IssueArgs),
    /// Replace a certificate and its key by new ones of the same identity
    Renew(IssueArgs),
    /// Revoke certificates: every one of a holder, or one by its number. Hosts that read crl.pem end the sessions of
    /// their holders at once
    #[command(group = clap::ArgGroup::new("which").required(true).args(["kind", "serial"]))]
    Revoke {
        /// Of what
        #[arg(requires = "name")]
        kind: Option<Holder>,
        /// Name of the router, node or operator
        name: Option<String>,
        /// Serial number in hexadecimal, as "list" shows it
        #[arg(long, value_name = "HEX", conflicts_with = "name")]
        serial: Option<String>,
        /// Why
        #[arg(long, default_value = "unspecified")]
        reason: Why,
        #[command(flatten)]
        authority: AuthorityArg,
    },
    /// List what was issued
    List {
        #[command(flatten)]
        authority: AuthorityArg,
    },
    /// Print what everybody may know: the authorities' certificates and what they revoked
    Export {
        /// Write it to a file
        #[arg(long, value_name = "FILE")]
        out: Option<PathBuf>,
        #[command(flatten)]
        authority: AuthorityArg,
    },
    /// Put a new authority beside the old one: from now on both are trusted and the new one signs
    Rotate {
        /// Drop the old one
        #[arg(long)]
        finish: bool,
        /// Drop it although certificates of it are in use
        #[arg(long, requires = "finish")]
        force: bool,
        #[command(flatten)]
        authority: AuthorityArg,
    },
}

const PKI_DIR: &str = "/etc/xenflow/pki";

/// Which authority.
#[derive(Debug, clap::Args)]
pub(crate) struct AuthorityArg {
    /// Directory of the authority
    #[arg(long, value_name = "DIR", default_value = PKI_DIR)]
    pub(crate) ca: PathBuf,
}

/// A certificate to make.
#[derive(Debug, clap::Args)]
pub(crate) struct IssueArgs {
    /// To what
    pub(crate) kind: Holder,
    /// Name of the router, node or operator
    pub(crate) name: String,
    #[command(flatten)]
    pub(crate) authority: AuthorityArg,
    /// Where to write; the authority's directory by default
    #[arg(long, value_name = "DIR")]
    pub(crate) out: Option<PathBuf>,
    /// Validity in days
    #[arg(long, default_value_t = dom0_server::pki::LEAF_DAYS)]
    pub(crate) days: u32,
    /// Validity in minutes, for a holder that renews by itself and is to be trusted for hours only
    #[arg(long, conflicts_with = "days")]
    pub(crate) minutes: Option<u32>,
}

/// Who can have a certificate.
#[derive(Debug, Clone, Copy, ValueEnum)]
pub(crate) enum Holder {
    /// A guest's client
    Router,
    /// A host
    Node,
    /// A person or tool
    Operator,
}

/// Why a certificate is revoked (RFC 5280, 5.3.1).
#[derive(Debug, Clone, Copy, ValueEnum)]
pub(crate) enum Why {
    /// Not said
    Unspecified,
    /// Somebody else may have the key
    KeyCompromise,
    /// Another one took its place
    Superseded,
    /// What it was for is gone
    CessationOfOperation,
    /// Its holder may do less from now on
    PrivilegeWithdrawn,
}
