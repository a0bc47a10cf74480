#!/usr/bin/env bash
# Runs the Dockerfile's steps as plain shell in bare Debian folders, where there is no Docker: each stage in a chroot of its own,
# from one made by debootstrap or from the stage that it names. Ends in the image's health check and a compilation, as the
# image's user.
#
# The stage `build` wants an image with Rust. Its result, the binary, is given instead; or `-`, and the stage is run in a Debian
# folder with this machine's Rust, which takes minutes.
#
# usage: container-check.sh TARGET BINARY|- MODEL.onnx [FOLDER]     (as root; TARGET is cpu or cuda)
set -euo pipefail
cd "$(dirname "$0")/.."
target=$1 binary=$2 model=$(realpath "$3") folder=${4:-$(mktemp -d)}
mirror=$(sed -n 's/^URIs: *\(.*\/debian\)$/\1/p; s/^deb \([^ ]*\/debian\) .*/\1/p' \
    /etc/apt/sources.list /etc/apt/sources.list.d/* 2>/dev/null | head -n 1 || true)
suite=bookworm
[ "$binary" = - ] || binary=$(realpath "$binary")
[ "$(id -u)" -eq 0 ] || { echo "container-check: a chroot takes root" >&2; exit 2; }
command -v debootstrap >/dev/null || { echo "container-check: apt-get install debootstrap" >&2; exit 2; }

base=$folder/base
if [ ! -e "$base/etc/debian_version" ]; then
    echo "container-check: debootstrap $suite from ${mirror:-http://deb.debian.org/debian}"
    debootstrap --variant=minbase "$suite" "$base" "${mirror:-http://deb.debian.org/debian}" >"$folder/debootstrap.log"
fi

mounted=()
cleanup() {
    for place in "${mounted[@]}"; do umount "$place" 2>/dev/null || true; done
}
trap cleanup EXIT

# What an image is made of beside its files: `user` and `directory` of the steps to come, the variables, and what it says of
# itself.
fresh() {
    env=(PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin HOME=/root DEBIAN_FRONTEND=noninteractive
         PIP_CERT=/etc/ssl/host.crt SSL_CERT_FILE=/etc/ssl/host.crt)
    user=root directory=/ health='' entry=''
}

# A stage's folder, a copy of that which it starts from, with what a container engine gives every container: /proc, /sys, name
# resolution, and this machine's trusted certificates (a proxy may have one of its own).
enter_stage() { # STAGE IMAGE
    root=$folder/$1
    rm -rf "$root"
    if [[ $2 == '$'* ]]; then
        fresh
        cp -a "$base" "$root"
        if [ "$2" = '${RUST}' ]; then
            local rust
            rust=$(rustc --print sysroot)
            cp -a "$rust/bin" "$rust/lib" "$root/usr/local/"
        fi
    else
        # shellcheck disable=SC1090
        source "$folder/$2.state"
        cp -a "$folder/$2" "$root"
    fi
    cp /etc/resolv.conf "$root/etc/resolv.conf"
    mkdir -p "$root/etc/ssl/certs"
    cp /etc/ssl/certs/ca-certificates.crt "$root/etc/ssl/host.crt"
    mount -t proc proc "$root/proc"
    mounted+=("$root/proc")
    mount -t sysfs -o ro sysfs "$root/sys"
    mounted+=("$root/sys")
}

# What the stages that start from this one begin with. A running stage is not copied: what is mounted goes before.
leave_stage() { # STAGE
    declare -p env user directory health entry | sed 's/^declare -[a-z-]* //' >"$folder/$1.state"
    umount "$root/proc" "$root/sys"
}

run() { # as the stage's user, in its folder
    local arguments=("$root")
    [ "$user" = root ] || arguments=(--userspec="$user:$user" "$root")
    chroot "${arguments[@]}" /usr/bin/env -i "${env[@]}" /bin/sh -ec 'cd "$1" && shift && exec "$@"' sh "$directory" "$@"
}

# Files of the checkout; all of it without what .dockerignore names.
copy() { # FROM TO
    if [ "$1" = . ]; then
        tar "${ignored[@]}" -cf - . | tar -xf - --no-same-owner -C "$root$directory"
    else
        cp -a "$1" "$root$2"
    fi
}
mapfile -t ignored < <(sed 's|^|--exclude=./|' .dockerignore)

# One instruction of a stage.
step() {
    local word=$1 rest=$2
    case $word in
        RUN) run /bin/sh -ec "$rest" >>"$folder/steps.log" 2>&1 || { tail -n 20 "$folder/steps.log" >&2; exit 1; } ;;
        ENV) env+=("$rest") ;;
        USER) user=$rest ;;
        WORKDIR) directory=$rest; mkdir -p "$root$rest"; [ "$user" = root ] || chroot "$root" chown "$user" "$rest" ;;
        HEALTHCHECK) health=${rest#*CMD } ;;
        ENTRYPOINT) entry=$rest ;;
        COPY)
            local from='' words
            read -ra words <<<"$rest"
            if [[ ${words[0]} == --from=* ]]; then from=${words[0]#--from=}; words=("${words[@]:1}"); fi
            mkdir -p "$root$(dirname "${words[1]}")"
            case $from in
                '') copy "${words[@]}" ;;
                build) cp "$binary" "$root${words[1]}" ;;
                *) cp -aT "$folder/$from${words[0]}" "$root${words[1]}" ;;
            esac ;;
        *) echo "container-check: the Dockerfile has $word, which this script does not know" >&2; exit 2 ;;
    esac
}

# The Dockerfile's instructions, one a line, continued lines joined.
joined=$(sed -e '/^#/d' -e '/^$/d' Dockerfile | sed -e ':a' -e '/\\$/N; s/\\\n *//; ta')

# A stage's instructions.
instructions() {
    awk -v stage="$1" '$1 == "FROM" { inside = ($4 == stage); next } $1 == "ARG" { next } inside' <<<"$joined"
}

declare -A made
make_stage() { # STAGE, after those that it takes something from
    local stage=$1 image from
    [ -z "${made[$stage]:-}" ] || return 0
    image=$(awk -v stage="$stage" '$1 == "FROM" && $4 == stage { print $2 }' <<<"$joined")
    [ -n "$image" ] || { echo "container-check: the Dockerfile has no stage $stage" >&2; exit 2; }
    [[ $image == '$'* ]] || make_stage "$image"
    for from in $(instructions "$stage" | sed -n 's/^COPY --from=\([^ ]*\) .*/\1/p'); do
        if [ "$from" != build ]; then
            make_stage "$from"
        elif [ "$binary" = - ]; then
            make_stage build
            binary=$folder/build/src/target/release/kiln
        fi
    done
    echo "container-check: stage $stage, from $image"
    enter_stage "$stage" "$image"
    while read -r word rest; do
        echo "  $word ${rest:0:100}"
        step "$word" "$rest"
    done < <(instructions "$stage")
    leave_stage "$stage"
    made[$stage]=yes
}

: >"$folder/steps.log"
make_stage "$target"

# The last stage is the image: `kiln` by its entry point, as its user.
[ "$entry" = '["kiln"]' ] && [ "$user" = kiln ] || { echo "container-check: the image is not as expected" >&2; exit 1; }
echo "container-check: $(du -sm "$root" | cut -f 1) MB, of which Debian $(du -sm "$base" | cut -f 1) MB"
[ "$health" = '["kiln", "doctor"]' ] || { echo "container-check: the health check is $health" >&2; exit 1; }
mount -t proc proc "$root/proc"
mount -t sysfs -o ro sysfs "$root/sys"
echo "container-check: kiln doctor"
run kiln doctor
cp "$model" "$root$directory/model.onnx"
echo "container-check: kiln compile"
run kiln compile model.onnx --fp16 --target sm_89 --quiet -o /tmp/model.kiln
[ -s "$root/tmp/model.kiln/model.engine" ] && [ -s "$root/tmp/model.kiln/report.md" ]
echo "container-check: done, as $user"
