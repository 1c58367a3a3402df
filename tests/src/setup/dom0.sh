#!/bin/sh
# Makes the disk of a Xen host of Debian's own packages: dom0.sh FOLDER MIRROR. There come to be in FOLDER: dom0.ext4, and what boots it
# (xen.elf, vmlinuz, initrd.img); in guest/ what a VM is booted with. Needs root. Nothing of this machine changes, and no service starts.
set -eu
cd "$1"
mirror="$2"
rm -rf root guest

# What it starts with knows what QEMU has, and nothing else.
mmdebstrap --quiet --mode=root --variant=required \
    --aptopt='Acquire::Languages "none"' --dpkgopt=force-unsafe-io \
    --dpkgopt='path-exclude=/usr/share/doc/*' --dpkgopt='path-exclude=/usr/share/man/*' --dpkgopt='path-exclude=/usr/share/locale/*' \
    --essential-hook='mkdir -p "$1/etc/initramfs-tools/conf.d"' \
    --essential-hook='printf "MODULES=list\nCOMPRESS=zstd\nCOMPRESSLEVEL=1\n" >"$1/etc/initramfs-tools/conf.d/lab"' \
    --essential-hook='printf "virtio_pci\nvirtio_blk\nvirtio_net\next4\ncrc32c_generic\n" >"$1/etc/initramfs-tools/modules"' \
    --include=linux-image-amd64,initramfs-tools,busybox-static,kmod,udev,systemd-sysv,procps,iproute2 \
    --include=xen-hypervisor-4.17-amd64,xen-utils-4.17,xenstore-utils,openvswitch-switch,openssh-server,openssh-client \
    bookworm root "$mirror"

# What a host is given by a run of the lab is on its second disk.
mkdir -p root/lab root/var/log/xen/console
printf '/dev/vda / ext4 rw,noatime 0 0\n/dev/vdb /lab ext4 ro 0 0\n' >root/etc/fstab
cat >root/etc/systemd/system/lab.service <<'END'
[Unit]
Description=The lab's part of a host's start
After=openvswitch-switch.service xen.service
Wants=openvswitch-switch.service
RequiresMountsFor=/lab
[Service]
Type=oneshot
RemainAfterExit=yes
ExecStart=/lab/begin
[Install]
WantedBy=multi-user.target
END
ln -s ../lab.service root/etc/systemd/system/multi-user.target.wants/lab.service
# It has the lab's keys, once that has begun it.
rm -f root/etc/systemd/system/multi-user.target.wants/ssh.service root/etc/systemd/system/sshd.service root/etc/ssh/ssh_host_*
for unit in apt-daily.timer apt-daily-upgrade.timer dpkg-db-backup.timer e2scrub_all.timer e2scrub_reap.service fstrim.timer \
    systemd-timesyncd.service xendomains.service serial-getty@hvc0.service getty@tty1.service; do
    ln -sf /dev/null "root/etc/systemd/system/$unit"
done
# What a guest says is in /var/log/xen/console.
echo 'XENCONSOLED_ARGS="--log=all"' >>root/etc/default/xen

mkdir guest
cp root/boot/vmlinuz-* guest/
find root/usr/lib/modules -name xen-netfront.ko -exec cp {} guest/ ';'
cp root/boot/vmlinuz-* vmlinuz
cp root/boot/initrd.img-* initrd.img
zcat root/boot/xen-4.17-amd64.gz >xen.elf
rm -f dom0.ext4
mkfs.ext4 -q -F -E lazy_itable_init=1,nodiscard -O ^has_journal -d root dom0.ext4 2G
rm -rf root
chown --recursive --reference=.. .
