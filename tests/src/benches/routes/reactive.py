"""A reactive controller, as RouteFlow's kin and the papers' first designs have it: the switch asks for each destination that it does
not know, and gets a flow for that address alone.

ROUTES names a file with a line `ADDRESS LENGTH MAC PORT` for each route; COMMANDS the unix socket on which it is told of changes:
`sync` and `change ADDRESS LENGTH MAC PORT`, each answered by `done` once the switch has confirmed it.
"""

import os
import socket
import struct

from os_ken.base import app_manager
from os_ken.controller import ofp_event
from os_ken.controller.handler import CONFIG_DISPATCHER, MAIN_DISPATCHER, set_ev_cls
from os_ken.lib import hub
from os_ken.ofproto import ofproto_v1_3

IPV4 = 0x0800
ROUTER = "02:52:00:00:00:01"
COOKIE = 1
PRIORITY = 10


class Reactive(app_manager.OSKenApp):
    OFP_VERSIONS = [ofproto_v1_3.OFP_VERSION]

    def __init__(self, *args, **kwargs):
        super().__init__(*args, **kwargs)
        # By length: next hops by network. The next hops are few, and kept once.
        self.tables = {}
        self.hops = {}
        self.datapath = None
        self.connected = hub.Event()
        self.barriers = {}
        with open(os.environ["ROUTES"], encoding="ascii") as lines:
            for line in lines:
                self.take(line.split())
        self.lengths = sorted(self.tables, reverse=True)
        self.listener = hub.StreamServer((os.environ["COMMANDS"], 0), self.serve)
        hub.spawn(self.listener.serve_forever)

    def take(self, words):
        address, length, mac, port = words
        (bits,) = struct.unpack("!I", socket.inet_aton(address))
        hop = self.hops.setdefault((mac, port), (mac, int(port)))
        self.tables.setdefault(int(length), {})[bits] = hop

    def find(self, bits):
        for length in self.lengths:
            hop = self.tables[length].get(bits & ~((1 << (32 - length)) - 1))
            if hop is not None:
                return hop
        return None

    @set_ev_cls(ofp_event.EventOFPSwitchFeatures, CONFIG_DISPATCHER)
    def begin(self, event):
        self.datapath = event.msg.datapath
        ofproto, parser = self.datapath.ofproto, self.datapath.ofproto_parser
        ask = parser.OFPActionOutput(ofproto.OFPP_CONTROLLER, ofproto.OFPCML_NO_BUFFER)
        self.add(0, parser.OFPMatch(eth_type=IPV4), [ask])
        self.connected.set()

    def add(self, priority, match, actions):
        ofproto, parser = self.datapath.ofproto, self.datapath.ofproto_parser
        apply = parser.OFPInstructionActions(ofproto.OFPIT_APPLY_ACTIONS, actions)
        self.datapath.send_msg(parser.OFPFlowMod(
            datapath=self.datapath, cookie=COOKIE if priority else 0, priority=priority, match=match, instructions=[apply]))

    @set_ev_cls(ofp_event.EventOFPPacketIn, MAIN_DISPATCHER)
    def packet_in(self, event):
        message = event.msg
        ofproto, parser = self.datapath.ofproto, self.datapath.ofproto_parser
        to = message.data[30:34]
        if len(to) < 4:
            return
        hop = self.find(struct.unpack("!I", to)[0])
        if hop is None:
            return
        mac, port = hop
        actions = [
            parser.OFPActionDecNwTtl(),
            parser.OFPActionSetField(eth_src=ROUTER),
            parser.OFPActionSetField(eth_dst=mac),
            parser.OFPActionOutput(port),
        ]
        self.add(PRIORITY, parser.OFPMatch(eth_type=IPV4, ipv4_dst=socket.inet_ntoa(to)), actions)
        self.datapath.send_msg(parser.OFPPacketOut(
            datapath=self.datapath, buffer_id=ofproto.OFP_NO_BUFFER, in_port=message.match["in_port"],
            actions=actions, data=message.data))

    def barrier(self):
        request = self.datapath.ofproto_parser.OFPBarrierRequest(self.datapath)
        self.datapath.set_xid(request)
        reached = self.barriers[request.xid] = hub.Event()
        self.datapath.send_msg(request)
        reached.wait()

    @set_ev_cls(ofp_event.EventOFPBarrierReply, MAIN_DISPATCHER)
    def reached(self, event):
        reached = self.barriers.pop(event.msg.xid, None)
        if reached is not None:
            reached.set()

    def change(self, words):
        self.take(words)
        self.lengths = sorted(self.tables, reverse=True)
        address, length = words[0], int(words[1])
        mask = socket.inet_ntoa(struct.pack("!I", (0xFFFFFFFF << (32 - length)) & 0xFFFFFFFF))
        ofproto, parser = self.datapath.ofproto, self.datapath.ofproto_parser
        self.datapath.send_msg(parser.OFPFlowMod(
            datapath=self.datapath, cookie=COOKIE, cookie_mask=COOKIE, command=ofproto.OFPFC_DELETE,
            out_port=ofproto.OFPP_ANY, out_group=ofproto.OFPG_ANY,
            match=parser.OFPMatch(eth_type=IPV4, ipv4_dst=(address, mask))))

    def serve(self, stream, _peer):
        self.connected.wait()
        for line in stream.makefile("r"):
            command, *words = line.split()
            if command == "change":
                self.change(words)
            self.barrier()
            stream.sendall(b"done\n")
