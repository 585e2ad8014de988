#!/usr/bin/env bash
# gateway.sh MAKE FILE OBJECTS: the gateway of docs/your-gateway.md with the page's own snippet, and a router of ours.
#
# To be run in mount, network and process namespaces of its own (see lab/tests/docs.rs): /run is empty, nothing outlives it.
# Succeeds when both sessions are Established, the gateway has both VIPs, and we have both default routes.
set -euo pipefail
make=$1 file=$2 objects=$3
work=$(dirname "$file")
cd "$work"

ip link set lo up
for name in gw pod; do
    ip netns add $name
    ip -n $name link set lo up
    ip netns exec $name sysctl -qw net.ipv6.conf.all.accept_dad=0 net.ipv6.conf.default.accept_dad=0 \
        net.ipv4.conf.all.forwarding=1 net.ipv6.conf.all.forwarding=1
done
ip link add ext0 netns gw type veth peer name vlan-100 netns pod
in_gw() { ip netns exec gw "$@"; }
in_pod() { ip netns exec pod "$@"; }
ip -n gw addr add 169.254.100.150/24 dev ext0
ip -n gw addr add 100:100::150/64 dev ext0 nodad
ip -n gw link set ext0 up
ip -n pod addr add 169.254.100.1/24 dev vlan-100
ip -n pod addr add 100:100::1/64 dev vlan-100 nodad
ip -n pod link set vlan-100 up
for name in gw pod; do
    until ip -n $name -6 addr show scope link | grep inet6 >links && ! grep tentative links >/dev/null; do sleep 0.1; done
done

table() { :; }
case $make in
frr)
    mkdir -p /run/frr/gw && chown -R frr:frr /run/frr
    for daemon in zebra bfdd bgpd; do
        port=""
        [ $daemon = bgpd ] && port="-p 10179"
        # shellcheck disable=SC2086 # two words or none
        in_gw /usr/lib/frr/$daemon -N gw -f /dev/null -A 127.0.0.1 -P 0 $port --log stdout >$daemon.log 2>&1 &
        until [ -S /run/frr/gw/$daemon.vty ]; do sleep 0.1; done
    done
    vtysh -N gw -f "$file" >said 2>&1
    # It has no file of its own here, and says so.
    if grep -v "Can't open configuration file" said | grep -E '%|rror'; then exit 1; fi
    table() { vtysh -N gw -c 'show bgp ipv4 unicast' -c 'show bgp ipv6 unicast'; }
    ;;
bird)
    in_gw bird -f -c "$file" -s ctl -P bird.pid >bird.log 2>&1 &
    table() { birdc -s ctl show route; }
    ;;
openbgpd)
    mkdir -p /run/openbgpd
    sed -i "1i socket \"$work/sock\"" "$file"
    chmod 600 "$file" && chown root:root "$file"
    in_gw /usr/sbin/bgpd -d -f "$file" >bgpd.log 2>&1 &
    table() { in_gw bgpctl -s sock show rib; }
    ;;
gobgp)
    in_gw gobgpd -t toml -f "$file" --api-hosts 127.0.0.1:50051 >gobgpd.log 2>&1 &
    until in_gw gobgp global >said 2>&1; do sleep 0.2; done
    in_gw gobgp global rib add 0.0.0.0/0 nexthop 169.254.100.150 -a ipv4
    in_gw gobgp global rib add ::/0 nexthop 100:100::150 -a ipv6
    table() { in_gw gobgp global rib -a ipv4; in_gw gobgp global rib -a ipv6; }
    ;;
esac

cp -r "$objects" objects
# Without BFD at the gateway, none in the GatewayRouter: as the page says.
case $make in openbgpd | gobgp) sed -i 's/switch: true/switch: false/; s/holdTime: 24s/holdTime: 9s/' objects/gateway-routers.yaml ;; esac
export MARTLET_CONTROL_SOCKET=$work/router.sock
in_pod martlet router --config-dir objects --gateway sllb-a --external-interface vlan-100 --lb-socket '' --health '' >router.log 2>&1 &

show() {
    echo "--- $make after $SECONDS s"
    martlet show peers || true
    martlet show vips || true
    martlet show bfd || true
    table || true
    tail -n 20 ./*.log
}
deadline=$((SECONDS + 60))
while :; do
    if [ "$(martlet show peers 2>/dev/null | grep -c Established)" = 2 ] && table >rib 2>/dev/null &&
        grep -q '20\.0\.0\.1' rib && grep -q '2000::1' rib &&
        ip -n pod route show table 4096 | grep -q 'default via 169.254.100.150' &&
        ip -n pod -6 route show table 4096 | grep -q 'default via 100:100::150'; then
        break
    fi
    [ $SECONDS -lt $deadline ] || { show; exit 1; }
    sleep 0.2
done
case $make in frr | bird) martlet show bfd | grep -q ' Up ' || { show; exit 1; } ;; esac
echo "$make: both sessions, both VIPs, both default routes after $SECONDS s"
