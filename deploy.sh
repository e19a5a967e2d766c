#!/bin/sh
# Starts the relay of compose.yaml on this machine, or brings it up to date: settings, secrets, certificate, health, tokens.
set -eu
# What is written here is for its owner alone.
umask 077
cd "$(dirname "$0")"
# They would give an image that is the same another identity each time it is built.
export BUILDX_NO_DEFAULT_ATTESTATIONS=1

usage() {
    cat <<'END'
Usage: ./deploy.sh [options] [DOMAIN]

Starts the relay of compose.yaml at https://DOMAIN, or brings it up to date. The first time, DOMAIN is
needed; it is then kept in .env, and secrets are made in the folder secrets.

  --email ADDRESS   where the CA may write to (the first time)
  --user NAME       whose tokens are made the first time [default: me]
  --staging         try it out at Let's Encrypt's staging CA: no limits to speak of, trusted by nobody
  --skip-dns        do not look whether DOMAIN leads to this machine
END
}

fail() {
    echo "deploy.sh: $*" >&2
    exit 1
}

wrong_usage() {
    echo "deploy.sh: $*" >&2
    usage >&2
    exit 2
}

note() {
    echo "deploy.sh: note: $*" >&2
}

step() {
    echo "==> $*"
}

check_docker() {
    command -v docker >/dev/null || fail "Docker is needed: https://docs.docker.com/engine/install"
    docker compose version >/dev/null 2>&1 ||
        fail "Docker's plugin for Compose is needed: https://docs.docker.com/compose/install/linux"
    docker info >/dev/null 2>&1 ||
        fail "Docker does not answer: start it, or run this as root or as a user of the group docker"
}

# What .env has for a name, without the quotes, blanks and ends of lines that editors leave.
setting() {
    sed -n "s/^[[:blank:]]*$1[[:blank:]]*=//p" .env | tail -n 1 | tr -d '\r' |
        sed "s/^[[:blank:]]*//; s/[[:blank:]]*\$//; s/^\"\(.*\)\"\$/\1/; s/^'\(.*\)'\$/\1/"
}

is_name() {
    case $1 in
        *[!A-Za-z0-9.-]* | [.-]* | *.) return 1 ;;
    esac
}

settle_settings() {
    if [ -f .env ]; then
        known=$(setting TUNNEL_DOMAIN)
        is_name "$known" || fail ".env has TUNNEL_DOMAIN=$known, which is no name of a machine: mend it there"
        [ -n "$known" ] || fail ".env has no TUNNEL_DOMAIN: put it there, as .env.example has it"
        [ -z "$domain" ] || [ "$domain" = "$known" ] ||
            fail ".env has TUNNEL_DOMAIN=$known, not $domain: change it there if the relay is to have another name"
        domain=$known
        [ -z "$email" ] || note "--email changes nothing, for .env is there: put TUNNEL_ACME_EMAIL=$email into it"
        return
    fi
    [ -n "$domain" ] || wrong_usage "which name leads to this machine? As in: ./deploy.sh relay.example.com"
    is_name "$domain" || wrong_usage "'$domain' is no name of a machine"
    step "writing .env"
    {
        echo "TUNNEL_DOMAIN=$domain"
        [ -z "$email" ] || echo "TUNNEL_ACME_EMAIL=$email"
    } >.env.new
    mv .env.new .env
}

has_tokens() {
    [ -e secrets/tokens-made ]
}

check_options() {
    [ -z "$staging" ] || ! has_tokens ||
        fail "this relay is in use: --staging would give it a certificate that nobody trusts"
    [ -z "$user" ] || ! has_tokens ||
        note "--user changes nothing, for the first tokens are made: docker compose exec relay /tunnel relay token --user $user"
    [ -z "$user" ] || [ -z "$staging" ] || note "--user changes nothing, for --staging makes no tokens"
}

own_addresses() {
    ip -o addr show scope global 2>/dev/null | awk '{ sub("/.*", "", $4); print $4 }'
    hostname -I 2>/dev/null | tr ' ' '\n'
}

# Behind a router, or in a cloud, others see the machine under an address that it does not know.
public_addresses() {
    for service in https://api.ipify.org https://api6.ipify.org; do
        curl --silent --fail --max-time 5 "$service" && echo
    done
}

# Whether each line of $1 stands in $2, too.
all_in() {
    for address in $1; do
        echo "$2" | grep -qxF "$address" || return 1
    done
}

in_line() {
    echo "$1" | xargs
}

# The DNS alone, where getent can: the machine itself may know its name otherwise, and a CA does not.
look_up() {
    getent -s dns ahosts "$1" || [ $? = 2 ] || getent ahosts "$1"
}

check_dns() {
    step "looking where $domain leads"
    command -v getent >/dev/null || fail "cannot look (there is no getent here); if it leads here, add --skip-dns"
    addresses=$(look_up "$domain" | awk '{ print $1 }' | sort -u)
    [ -n "$addresses" ] || fail "$domain is in no DNS yet: make an A record (and AAAA, if there is IPv6) that leads to this machine"
    if echo "$addresses" | grep -qE '^(127\.|::1$)'; then
        fail "here, $domain leads to $(in_line "$addresses"): this machine takes the name for its own, most often by /etc/hosts.
Take it out there, or add --skip-dns if everybody else finds this machine by the DNS"
    fi
    own=$(own_addresses) || true
    all_in "$addresses" "$own" && return
    own=$(printf '%s\n' "$own" && public_addresses) || true
    all_in "$addresses" "$own" && return
    fail "$domain leads to $(in_line "$addresses"), and not all of that is this machine ($(in_line "$own")).
The CA would look there: mend the DNS. If something there forwards ports 443 and 80 to here, add --skip-dns"
}

random() {
    od -An -N32 -tx1 /dev/urandom | tr -d ' \n'
}

make_secrets() {
    mkdir -p secrets
    chmod 700 secrets
    if [ ! -s secrets/database-password ]; then
        if docker volume inspect tunnel_database >/dev/null 2>&1; then
            fail "there is a database, but not its password: bring secrets/database-password back from a backup"
        fi
        step "making the database's password"
        random >secrets/database-password.new
        mv secrets/database-password.new secrets/database-password
    fi
    if [ ! -s secrets/database-url ]; then
        echo "postgres://tunnel:$(cat secrets/database-password)@postgres/tunnel?sslmode=disable" >secrets/database-url.new
        # The relay's numeric user reads it in its container; here, nobody else gets into the folder.
        chmod 444 secrets/database-url.new
        mv secrets/database-url.new secrets/database-url
    fi
}

image() {
    docker image inspect --format '{{.Id}}' tunnel 2>/dev/null || true
}

# The image of the relay that runs, if it is one that works.
working_image() {
    container=$(docker compose ps --quiet relay)
    [ -z "$container" ] ||
        docker inspect --format '{{.State.Health.Status}} {{.Image}}' "$container" | sed -n 's/^healthy //p'
}

start() {
    step "building"
    before=$(working_image)
    docker compose pull postgres
    docker compose build --pull relay
    # The way back, also if the new one does not start. One that never worked is none.
    if [ -n "$before" ] && [ "$before" != "$(image)" ]; then
        docker image tag "$before" tunnel:previous
        step "the image from before is tunnel:previous"
    fi
    step "starting"
    if ! docker compose up --detach --wait --wait-timeout 300 relay; then
        docker compose logs --tail 30 postgres relay >&2
        fail "it does not become healthy; its last words are above. The way back to the version from before, if there was one, is in
docs/operations.md (Rollback)"
    fi
}

# From here it may not be reached by its name, though others reach it.
has_certificate() {
    docker compose logs relay 2>/dev/null | grep -q 'certificate in use'
}

answers() {
    docker compose exec -T relay /tunnel probe --health "https://$domain" >/dev/null 2>&1
}

await_certificate() {
    step "waiting for the certificate"
    tries=0
    until has_certificate; do
        tries=$((tries + 1))
        if [ "$tries" -ge 40 ]; then
            # The log of one that runs for long may have lost its beginning.
            [ -n "$staging" ] || ! answers || return 0
            docker compose logs --tail 30 relay >&2
            fail "there is no certificate for $domain yet; what the log above says is explained in docs/operations.md.
Ports 443 and 80 must reach this machine. Until it works, try with --staging: the CA counts what fails"
        fi
        sleep 3
    done
}

token() {
    docker compose exec -T relay /tunnel relay token "$@"
}

probe() {
    step "checking it from end to end"
    passing=$(token --user deploy --expires 15m) || return
    TUNNEL_TOKEN=$passing docker compose run --rm --no-deps -T -e TUNNEL_TOKEN relay probe --relay "https://$domain"
}

tell() {
    echo
    echo "The relay runs at https://$domain."
    if has_tokens; then
        echo "A token for another desktop: docker compose exec relay /tunnel relay token --user NAME --scope bridge"
        return
    fi
    for_bridge=$(token --user "${user:-me}" --scope bridge)
    for_clients=$(token --user "${user:-me}" --scope api)
    : >secrets/tokens-made
    echo
    echo "On the desktop (with --install it runs by itself from then on):"
    echo "  TUNNEL_TOKEN=$for_bridge tunnel bridge --relay https://$domain"
    echo "For clients, the base URL https://$domain, or https://$domain/v1 for OpenAI's, with this key:"
    echo "  $for_clients"
}

domain='' email='' user='' staging='' skip_dns=''
while [ $# -gt 0 ]; do
    case $1 in
        --email | --user)
            [ $# -ge 2 ] || wrong_usage "$1 needs a value"
            case $1 in
                --email) email=$2 ;;
                --user) user=$2 ;;
            esac
            shift
            ;;
        --staging) staging=1 ;;
        --skip-dns) skip_dns=1 ;;
        -h | --help)
            usage
            exit
            ;;
        -*) wrong_usage "there is no option $1" ;;
        *)
            [ -z "$domain" ] || wrong_usage "one name, please"
            domain=$1
            ;;
    esac
    shift
done

check_options
check_docker
settle_settings
[ -n "$skip_dns" ] || check_dns
make_secrets
if [ -n "$staging" ]; then
    export TUNNEL_ACME_STAGING=1
fi
start
await_certificate
if [ -n "$staging" ]; then
    step "it works: run this again without --staging for a certificate that is trusted"
    exit
fi
if probe; then
    tell
else
    tell
    fail "the relay runs, but the check found what stands above. Behind a router, this machine may not reach its own name: then check
from elsewhere, with a token for both: tunnel probe --relay https://$domain"
fi
