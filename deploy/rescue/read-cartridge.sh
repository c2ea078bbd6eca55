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

say() { echo "read-cartridge: $*" >&2; }
die() { say "$*"; exit 1; }
usage() { echo "usage: read-cartridge.sh list CARTRIDGE... | restore UUID IMAGE CARTRIDGE..." >&2; exit 2; }

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
    object=-1 kind=none where=$1 is_tape=no file=$1/data
    [ -d "$1" ] || is_tape=yes file=$1
    [ -r "$file" ] || die "$1 cannot be read, or has no file called data: is it the folder of a cartridge?"
    exec 3<"$file"
    next_object
    [ "$kind" = record ] && [ "$(bytes "$record" 0 4)" = "86 79 76 49" ] || die "$1 does not begin with VOL1"
}

# next_object [skip]: go over the next object; `kind` is record, damaged, mark or end; a record is in $record unless skipped
next_object() {
    last=$kind object=$((object + 1))
    if [ $is_tape = yes ]; then
        # One read gives one record.  Nothing is a filemark, and nothing twice is the end of data.
        dd bs=16777215 count=1 <&3 >"$record" 2>/dev/null || die "$where: object $object cannot be read"
        if [ -s "$record" ]; then kind=record; elif [ "$last" = mark ]; then kind=end; else kind=mark; fi
        return
    fi
    # An entry of 32 bytes is in front of each object: kind, format, 3 bytes stored if it is compressed, 3 bytes length...
    dd bs=32 count=1 <&3 >"$work/entry" 2>/dev/null
    set -- "${1:-read}" $(bytes "$work/entry" 0 32)
    case $#.${2:-} in
    33.1) kind=record ;;
    33.2) kind=mark && return ;;
    1.) kind=end && return ;;
    *) kind=end && say "$where: nothing is read from object $object on: its entry makes no sense" && return ;;
    esac
    length=$((($7 * 256 + $8) * 256 + $9)) stored=$((($4 * 256 + $5) * 256 + $6))
    [ $length -gt 0 ] || die "$where: object $object has no length"
    if [ "$1" = skip ]; then
        dd bs=$((stored > 0 ? stored : length)) skip=1 count=0 <&3 >/dev/null 2>&1
    elif [ $stored -eq 0 ]; then
        dd bs=$length count=1 <&3 >"$record" 2>/dev/null
    else
        command -v zstd >/dev/null || die "$where: object $object is compressed: zstd is needed"
        dd bs=$stored count=1 <&3 2>/dev/null | zstd -dcq >"$record" 2>/dev/null || kind=damaged
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
        at=0 from=$record
        case $kind in
        record) ;;
        damaged) from=/dev/zero bad=$((bad + 1)) && say "$where: object $object is damaged: zeros in its place" ;;
        *) die "$where: object $object is no record: the cartridge is damaged" ;;
        esac
        while [ $at -lt $((record_bytes / block)) ]; do
            if [ "$left" = 0 ]; then read -r lba <&4 && read -r left <&4 || break; fi
            take=$((record_bytes / block - at))
            [ $take -lt "$left" ] || take=$left
            copy "$from" $at "$lba" $take
            at=$((at + take)) lba=$((lba + take)) left=$((left - take))
        done
    done
}

restore() {
    wanted=$1 image=$2 found=0 parts=0 ends=0 lanes=1 have=' ' missing= bad=0
    shift 2
    for cartridge; do
        open_cartridge "$cartridge"
        while next_trailer; do
            [ "$(field backup_uuid "$json")" = "$wanted" ] || continue
            [ $found -gt 0 ] || prepare_image
            found=$((found + 1)) here=$object part=$(field part "$rest") && have="$have$part "
            [ "$(field is_last "$rest")" = false ] || ends=$((ends + 1))
            [ "$part" -lt $parts ] || parts=$part
            case $rest in *'"lanes":'*) lanes=$(field lanes "$rest") ;; esac
            restore_part "$cartridge"
            while [ $object -lt "$here" ]; do next_object skip; done
        done
    done
    [ $found -gt 0 ] || die "no backup $wanted on these cartridges: list shows the UUIDs of those that are there"
    while [ "$parts" -gt 0 ]; do
        case $have in *" $parts "*) ;; *) missing="part $parts, $missing" ;; esac
        parts=$((parts - 1))
    done
    [ $ends -ge "$lanes" ] || missing="${missing}what follows, "
    [ -z "$missing" ] || die "$image is not complete: $found part(s) were there; bring the cartridge with ${missing%, }"
    [ $bad -eq 0 ] || die "$image is not complete: $bad record(s) are damaged, and zeros in it"
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
