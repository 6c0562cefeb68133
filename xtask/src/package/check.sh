#!/bin/bash
# Runs as a service in a guest whose init is systemd, and reports on the second serial line.
exec > /dev/console 2>&1
set -x

# report NAME CONDITION-STATUS DETAIL
report() {
    local result=failed
    [ "$2" = 0 ] && result=ok
    printf '{"test":"%s","result":"%s","detail":"%s"}\n' "$1" "$result" "${3//[\"\\]/\'}" > /dev/ttyS1
}

scrape() {
    exec 3<> /dev/tcp/127.0.0.1/9963 || return 1
    printf 'GET /metrics HTTP/1.0\r\n\r\n' >&3
    grep -v '^#' <&3
    exec 3>&-
}

inserts() {
    scrape | sed -n 's/^ctwatch_inserts_total{netns="init",family="ipv4",proto="udp"} //p'
}

# Each one is a new flow: the destination ports differ.
flood() {
    for port in $(seq "$1" "$2"); do echo x > "/dev/udp/127.0.0.1/$port"; done 2> /dev/null
}

new_flows() {
    nft list counter inet witness new | sed -n 's/.*packets \([0-9]*\).*/\1/p'
}

for module in nf_conntrack nf_conntrack_netlink nft_ct; do /opt/busybox modprobe $module; done
ip link set lo up
nft 'table inet witness {
    counter new { }
    chain c { type filter hook output priority 0; udp dport 20000-40000 ct state new counter name new; }
}'

# Readings come once an interval: what it says when that number is reached, or after 20 s.
settled() {
    local told
    for _ in $(seq 100); do
        told=$(inserts)
        [ "$told" = "$1" ] && break
        sleep 0.2
    done
    echo "$told"
}

systemctl start ctwatch.service
started=$?
flood 20000 20299
witness=$(new_flows)
told=$(settled "$witness")
source=$(scrape | grep '^ctwatch_source_info')
[ $started = 0 ] && [ "$witness" = 300 ] && [ "$told" = "$witness" ] && [[ $source == *'kind="fexit"'* ]]
report packaged::service $? "started $started, nft $witness new flows, ctwatch $told, $source"

# The process that holds what is foreign: the service's filter of system calls must not end it.
processes=$(cat $(sed 's#.*#/proc/&/comm#' /sys/fs/cgroup/system.slice/ctwatch.service/cgroup.procs) | sort | xargs)
[ "$processes" = "ctwatch ctwatch-netns" ]
report packaged::second_process $? "processes: $processes"

# Longer than its watchdog waits (30 s in the unit, 3 s here), and it is the same process.
mkdir -p /run/systemd/system/ctwatch.service.d
printf '[Service]\nWatchdogSec=3s\n' > /run/systemd/system/ctwatch.service.d/watchdog.conf
systemctl daemon-reload
systemctl restart ctwatch.service
pid=$(systemctl show -P MainPID ctwatch.service)
sleep 10
later=$(systemctl show -P MainPID ctwatch.service)
# Held, it is found and killed.
kill -STOP "$pid"
for _ in $(seq 150); do
    [ "$(systemctl show -P Result ctwatch.service)" = watchdog ] && break
    sleep 0.2
done
result=$(systemctl show -P Result ctwatch.service)
[ "$pid" != 0 ] && [ "$pid" = "$later" ] && [ "$result" = watchdog ]
report packaged::watchdog $? "process $pid, after 10 s $later, held: $result"

# systemd listens, and the first scrape starts it.
systemctl stop ctwatch.service
systemctl reset-failed ctwatch.service
systemctl start ctwatch.socket
before=$(systemctl is-active ctwatch.service)
scrape > /dev/null
flood 30000 30099
told=$(settled 100)
[ "$before" = inactive ] && [ "$told" = 100 ]
report packaged::socket $? "service $before before the first scrape, then ctwatch $told of 100 new flows"

systemctl stop ctwatch.socket ctwatch.service
state=$(systemctl show -P Result ctwatch.service)
programs=$(ls /run/ctwatch 2> /dev/null)
[ "$state" = success ] && [ -z "$programs" ] && [ ! -e /run/ctwatch ]
report packaged::stop $? "result $state, left in /run: $programs"

# The flight recorder keeps what nft counts, through a restart, in a file that only root reads.
flight=/var/lib/ctwatch/flight.ctw
reports() { ctwatch replay --json "$flight" 2> /dev/null | grep -c '^{'; }
kept() {
    # A total for each run.
    ctwatch replay --plain "$flight" |
        awk '$1 == "total" && $2 == "init" && $3 == "ipv4" && $4 == "udp" { sum += $5 } END { print sum + 0 }'
}
nft reset counters > /dev/null
told=0
for ports in "31000 31149" "32000 32149"; do
    # Stopped first: what it writes at its end is no report of the next run.
    systemctl stop ctwatch-record.service
    before=$(reports)
    systemctl start ctwatch-record.service
    for _ in $(seq 100); do
        [ "$(reports)" -gt "${before:-0}" ] && break
        sleep 0.2
    done
    flood $ports
    witness=$(new_flows)
    for _ in $(seq 100); do
        told=$(kept)
        [ "$told" = "$witness" ] && break
        sleep 0.2
    done
done
systemctl stop ctwatch-record.service
state=$(systemctl show -P Result ctwatch-record.service)
mode=$(stat -L -c %a "$flight")
[ "$witness" = 300 ] && [ "$(kept)" = 300 ] && [ "$state" = success ] && [ "$mode" = 600 ]
report packaged::recorder $? "nft $witness new flows, recording $told, mode $mode, result $state"

journalctl --boot --no-pager --unit ctwatch.service --unit ctwatch-record.service | tail -n 20
echo '{"end":true,"exit":0}' > /dev/ttyS1
systemctl poweroff --force --force
