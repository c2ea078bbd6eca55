#!/bin/sh
# First start of a cluster in containers: keys and configurations, one folder per service.
#
#   init.sh FOLDER      FOLDER/controller, disk, tape, mover and operator are the services' own volumes
#
# Idempotent: a key that exists is kept, and a configuration that exists is never overwritten.
set -eu
folder=$1
here=$(dirname "$0")

key() { # service role name
    if ! [ -e "$folder/$1/keys/$3.secret" ]; then
        ctl keys create --folder "$folder/$1/keys" --role "$2" --name "$3" >/dev/null
        echo "made the key of $3"
    fi
}

key controller controller controller
key disk storage disk
key tape storage tape
key operator operator operator
number=1
while [ "$number" -le "${MOVERS_MAX:-16}" ]; do
    key mover mover "mover-$number"
    number=$((number + 1))
done

# The controller knows everybody; everybody else knows the controller.
for service in disk tape mover operator; do
    for public in "$folder/$service"/keys/authorized/*.public; do
        case $public in
            */controller.public) ;;
            *) cp "$public" "$folder/controller/keys/authorized/" ;;
        esac
    done
    cp "$folder/controller/keys/authorized/controller.public" "$folder/$service/keys/authorized/"
done

for service in controller disk tape mover; do
    if ! [ -e "$folder/$service/$service.toml" ]; then
        cp "$here/config/compose/$service.toml" "$folder/$service/$service.toml"
    fi
done
echo "keys and configurations are in place"
