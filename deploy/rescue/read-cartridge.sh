#!/bin/sh
# Reads backup cartridges with nothing but sh, dd and od (and zstd, if a drive has compressed its records).
#
#   read-cartridge.sh list CARTRIDGE...                which committed parts of backups are on them
#   read-cartridge.sh restore UUID IMAGE CARTRIDGE...  write the volume of the backup with this UUID to IMAGE
#
# CARTRIDGE is the folder of a virtual cartridge, or a tape device that rewinds when it is closed (/dev/st0).  A backup
# that is not full stands on its parent, whose UUID `list` shows: restore that into IMAGE first, then the backup over it.
# Checksums are not compared.  The layout is explained in the first record of every cartridge, and in docs/tape-format.md.
set -u
export LC_ALL=C

die() {
    echo "read-cartridge: $*" >&2
    exit 1
}

usage() {
    echo "usage: read-cartridge.sh list CARTRIDGE... | restore UUID IMAGE CARTRIDGE..." >&2
    exit 2
}

# bytes FILE SKIP COUNT: the values of some bytes, as words
bytes() { echo $(dd if="$1" bs=1 skip="$2" count="$3" 2>/dev/null | od -An -v -tu1); }

# number FILE SKIP COUNT: a big-endian number
number() {
    value=0
    for byte in $(bytes "$1" "$2" "$3"); do value=$((value * 256 + byte)); done
    echo "$value"
}

# field NAME JSON: the first number or string of that name, without its quotes
field() {
    case $2 in *"\"$1\":"*) ;; *) die "a trailer without $1: it is of another version of the format" ;; esac
    value=${2#*"\"$1\":"}
    case $value in
    '"'*) value=${value#'"'} && echo "${value%%'"'*}" ;;
    *) echo "${value%%[,\}]*}" ;;
    esac
}

# pairs NAME JSON: the numbers of a list of pairs, one behind the other
pairs() {
    case $2 in *"\"$1\":[["*) ;; *) return 0 ;; esac
    value=${2#*"\"$1\":[["}
    value=${value%%']]'*}
    old=$IFS IFS='[],'
    for word in $value; do [ -z "$word" ] || echo "$word"; done
    IFS=$old
}

open_cartridge() {
    object=-1 last=none
    if [ -d "$1" ]; then
        is_tape=no
        [ -r "$1/data" ] || die "$1 has no file called data: is it the folder of a cartridge?"
        exec 3<"$1/data"
    else
        is_tape=yes
        [ -r "$1" ] || die "$1 cannot be read"
        exec 3<"$1"
    fi
    next_object
    [ "$kind" = record ] && [ "$(bytes "$record" 0 4)" = "86 79 76 49" ] || die "$1 does not begin with VOL1"
}

# next_object [skip]: go over the next object; `kind` is record, mark or end, a record is in $record unless skipped
next_object() {
    last=${kind:-none} object=$((object + 1))
    if [ $is_tape = yes ]; then
        # One read gives one record.  Nothing is a filemark, and nothing twice is the end of data.
        dd bs=16777215 count=1 <&3 >"$record" 2>/dev/null || die "object $object cannot be read"
        if [ -s "$record" ]; then kind=record; elif [ "$last" = mark ]; then kind=end; else kind=mark; fi
        return
    fi
    # An entry of 32 bytes is in front of each object: kind, format, 3 bytes stored if it is compressed, 3 bytes length...
    dd bs=32 count=1 <&3 >"$work/entry" 2>/dev/null
    set -- "${1:-read}" $(bytes "$work/entry" 0 32)
    case $#.${2:-} in
    33.1) kind=record ;;
    33.2) kind=mark && return ;;
    *) kind=end && return ;;
    esac
    length=$((($7 * 256 + $8) * 256 + $9)) stored=$((($4 * 256 + $5) * 256 + $6))
    [ $length -gt 0 ] || die "object $object has no length"
    if [ "$1" = skip ]; then
        dd bs=$((stored > 0 ? stored : length)) skip=1 count=0 <&3 >/dev/null 2>&1
    elif [ $stored -eq 0 ]; then
        dd bs=$length count=1 <&3 >"$record" 2>/dev/null
    else
        dd bs=$stored count=1 <&3 2>/dev/null | zstd -dcq >"$record" || die "object $object: zstd is needed, or it is damaged"
    fi
}

# next_trailer: go on to the next trailer that a filemark closes.  Sets `json`, and `rest`, which begins behind what the
# trailer says of other parts.
next_trailer() {
    while :; do
        if [ "$kind" = mark ]; then next_object; else next_object skip; fi
        [ "$kind" = end ] && return 1
        [ "$kind" = record ] && [ "$last" = mark ] || continue
        # SDVMETA, type 3, and standing where it says that it stands
        [ "$(bytes "$record" 0 10)" = "83 68 86 77 69 84 65 0 0 3" ] || continue
        [ "$(number "$record" 32 8)" -eq $object ] || continue
        pieces=$(number "$record" 46 2) json=
        while [ "$kind" = record ] && [ "$pieces" -gt 0 ]; do
            json=$json$(dd if="$record" bs=64 skip=1 2>/dev/null)
            pieces=$((pieces - 1))
            next_object
        done
        rest=${json#*'"extents":['}
        [ "$kind" = mark ] && return 0
    done
}

list() {
    for cartridge; do
        open_cartridge "$cartridge"
        echo "$cartridge"
        while next_trailer; do
            parent=$(field parent_uuid "$rest")
            echo "  $(field backup_uuid "$json") part $(field part "$rest") of $(field name "${rest#*'"volume":{'}")," \
                "$(field level "$rest")${parent:+ on $parent}, $(field created "$json")"
        done
    done
}

# prepare_image: make it, or find it, as the trailer in `json` wants it
prepare_image() {
    volume=${rest#*'"volume":{'}
    block=$(field block_bytes "$volume") && blocks=$(field blocks "$volume") || exit 1
    if [ "$(field level "$rest")" = full ]; then
        [ ! -e "$image" ] || die "$image is there already"
        dd if=/dev/null of="$image" bs="$block" seek="$blocks" count=0 2>/dev/null || die "$image cannot be written"
    fi
    [ -f "$image" ] || die "no $image: restore the parent $(field parent_uuid "$rest") into it first"
}

# copy FROM SKIP LBA BLOCKS: write blocks to the image
copy() {
    dd if="$1" of="$image" bs="$block" skip="$2" seek="$3" count="$4" conv=notrunc 2>/dev/null || die "$image cannot be written"
}

# restore_part CARTRIDGE: the part of the trailer in `json`
restore_part() {
    begin=$(field data_object "$json") records=$(field records "$rest") record_bytes=$(field record_bytes "$rest")
    pairs zero_extents "$rest" >"$work/pairs"
    while read -r lba && read -r left; do copy /dev/zero 0 "$lba" "$left"; done <"$work/pairs"
    pairs extents "$json" >"$work/pairs"
    exec 4<"$work/pairs"
    open_cartridge "$1"
    while [ $object -lt $((begin - 1)) ]; do next_object skip; done
    left=0
    while [ $object -lt $((begin + records - 1)) ]; do
        next_object
        [ "$kind" = record ] || die "object $object is no record: the cartridge is damaged"
        at=0
        while [ $at -lt $((record_bytes / block)) ]; do
            if [ "$left" = 0 ]; then read -r lba <&4 && read -r left <&4 || break; fi
            take=$((record_bytes / block - at))
            [ $take -lt "$left" ] || take=$left
            copy "$record" $at "$lba" $take
            at=$((at + take)) lba=$((lba + take)) left=$((left - take))
        done
    done
}

restore() {
    wanted=$1 image=$2 found=0 parts=0 ends=0 lanes=1
    shift 2
    for cartridge; do
        open_cartridge "$cartridge"
        while next_trailer; do
            [ "$(field backup_uuid "$json")" = "$wanted" ] || continue
            [ $found -gt 0 ] || prepare_image
            found=$((found + 1)) here=$object
            [ "$(field is_last "$rest")" = false ] || ends=$((ends + 1))
            [ "$(field part "$rest")" -lt $parts ] || parts=$(field part "$rest")
            case $rest in *'"lanes":'*) lanes=$(field lanes "$rest") ;; esac
            restore_part "$cartridge"
            while [ $object -lt "$here" ]; do next_object skip; done
        done
    done
    [ $found -gt 0 ] || die "no backup $wanted on these cartridges"
    [ $found.$ends = "$parts.$lanes" ] || die "$image is not complete: $found part(s) were there; are cartridges missing?"
    echo "$image: backup $wanted, $found part(s)"
}

[ $# -ge 2 ] || usage
work=$(mktemp -d) || die "no place for temporary files"
trap 'rm -rf "$work"' EXIT && trap 'exit 130' INT TERM
record=$work/record
case $1.$# in
list.*) shift && list "$@" ;;
restore.[0-3]) usage ;;
restore.*) shift && restore "$@" ;;
*) usage ;;
esac
