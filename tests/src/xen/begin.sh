#!/bin/sh
# The lab's part of a Xen host's start: its settings, its networks, its daemon. The kernel's command line says who it is.
set -eux
exec >/dev/hvc0 2>&1
name=$(sed -n 's/.*lab\.name=\([a-z]*\).*/\1/p' /proc/cmdline)
address=$(sed -n 's/.*lab\.address=\([0-9.]*\).*/\1/p' /proc/cmdline)
hostname "$name"
cp --archive /lab/common/. "/lab/$name/." /
systemctl daemon-reload

# eth0: of the hosts; then XenFlow's trunk, and networks of which XenFlow knows nothing, for the comparison.
ip link set lo up
ip link set eth1 name trunk
ip address add "$address/24" dev eth0
for nic in eth0 trunk eth2 eth3; do ip link set "$nic" up; done
systemctl start ssh
ovs-vsctl --timeout=120 add-br br-xf -- set Bridge br-xf fail_mode=secure -- add-port br-xf trunk \
    -- add-br br-lan -- add-port br-lan eth2 -- add-br br-core -- add-port br-core eth3 -- add-br br-ctl
systemctl start xenflow-dom0
echo LAB-READY
