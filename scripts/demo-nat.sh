# The part of scripts/demo behind --nat; sourced by it.
#
#   host A ── gateway A ── NAT ──┐                ┌── NAT ── gateway B ── host B
#   10.101.0.2                   ├── internet ────┤                   10.102.0.2
#                                │ penstock-coordinator: TCP 443, UDP 3478
# shellcheck shell=bash disable=SC2154 # What it uses is scripts/demo's.

coordinator=203.0.113.1
coordinator_bin=$(dirname "$PENSTOCK_BIN")/penstock-coordinator

say() { printf '\n── %s\n\n' "$*"; }

# Shows a command and runs it at a place.
at() {
    local place=$1 shown
    shift
    shown=${*//$PENSTOCK_BIN/penstock}
    printf '%s$ %s\n' "$place" "${shown//$coordinator_bin/penstock-coordinator}"
    in_place "$place" "$@"
}

# Waits until a site's peer is reached by a path. $1: the site, $2: the path, $3: how many tenths of a second.
wait_for_path() {
    local site=$1 path=$2 tenths=$3
    for _ in $(seq "$tenths"); do
        if status_of "$site" 2>/dev/null | jq -e --arg path "$path" '.Peers[0].Path == $path' >/dev/null; then
            return 0
        fi
        sleep 0.1
    done
    echo "demo: site $site is not reached by path \"$path\" after $((tenths / 10)) s" >&2
    return 1
}

show_status() {
    at "$1-gw" "$PENSTOCK_BIN" status --profile "$state/demo-$1.profile" | sed '/^PORT /,/^$/d'
}

ping_other_site() {
    at a-host ping -n -c 3 -i 0.2 -W 2 10.102.0.2 | sed -n '/bytes from/p;/packets/p'
}

scripts/netns up-nat

say 'A coordinator on the internet, and a key that lets two sites in for a day.'
scripts/netns exec internet "$coordinator_bin" run --state "$state/coordinator" --name "$coordinator" \
    --listen "$coordinator:443" --udp "$coordinator:3478" --udp 203.0.113.2:3478 \
    </dev/null >"$state/coordinator.log" 2>&1 &
echo $! >"$state/coordinator.pid"
for _ in $(seq 100); do
    [ -S "$state/coordinator/control.sock" ] && break
    sleep 0.1
done
at internet "$coordinator_bin" key create --uses 2 --expires 24h --state "$state/coordinator" | tee "$state/key.txt"
grep -v '\$ ' "$state/key.txt" | tail -n 1 >"$state/enrolment.key"

say 'Each site enrols. Its private key stays where it is, and no port is opened anywhere.'
for site in a b; do
    [ "$site" = a ] && number=1 || number=2
    "$PENSTOCK_BIN" genkey >"$state/demo-$site.key"
    jq -n --arg name "demo-$site" --arg wan "$wan" --arg lan "$lan" --argjson own "$number" '{
        Name: $name,
        PrivateKeyFile: "\($name).key",
        Wan: { Interface: "wan0", Mode: $wan },
        Lan: { Interfaces: ["lan0"], Mode: $lan, Subnets: ["10.10\($own).0.0/24", "fd00:10\($own)::/64"] },
        # Otherwise the last step would take longer to show: guessing ports gets through many symmetric NATs.
        BirthdayProbing: false
    }' >"$state/demo-$site.profile"
    PENSTOCK_STATE_DIR=$state at "$site-gw" "$PENSTOCK_BIN" enrol "$state/enrolment.key" \
        --coordinator "https://$coordinator" --profile "$state/demo-$site.profile"
done

say 'Both start. The first packets go by the relay, while a direct path is looked for.'
for site in a b; do
    PENSTOCK_STATE_DIR=$state scripts/netns exec "$site-gw" "$PENSTOCK_BIN" run --profile "$state/demo-$site.profile" \
        </dev/null >"$state/demo-$site.log" 2>&1 &
    echo $! >"$state/demo-$site.pid"
done
# This state lasts a fraction of a second.
for _ in $(seq 1000); do
    show_status a >"$state/relayed.txt" 2>/dev/null || true
    grep -q 'relay 203' "$state/relayed.txt" && break
done
cat "$state/relayed.txt"

say 'The NATs let a direct path through: found without a lost packet.'
wait_for_path a direct 100
wait_for_path b direct 100
show_status a
ping_other_site

say "B's NAT becomes a symmetric one: every destination sees another port of it, and A's NAT accepts only endpoints it has sent to."
scripts/netns nat b symmetric
wait_for_path a relay 100
# Until both know the new kind of NAT, the reason is that the direct path died.
for _ in $(seq 300); do
    status_of a | jq -e '.Peers[0].Reason | test("every destination")' >/dev/null && break
    sleep 0.1
done
show_status a
ping_other_site

if [ "$keep" = yes ]; then
    cat <<END

It stays up. To look around:
  scripts/netns nat b cone             B's NAT as it was
  scripts/netns exec a-host bash
  scripts/netns exec a-gw $PENSTOCK_BIN netcheck --profile $state/demo-a.profile
  $PENSTOCK_BIN status --profile $state/demo-a.profile
To tear it down:
  scripts/demo --down
END
fi
