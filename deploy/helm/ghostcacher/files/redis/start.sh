#!/bin/sh
# Starts Redis with the users of GhostCacher. Passwords come from files, and only their hashes are written.
#   start.sh PASSWORDS RULES USERS CONFIG
# PASSWORDS: folder with redis-worker-password and so on. RULES: users.acl with a name for each hash. USERS: what is
# written. Exits non-zero, naming the file, when a password is missing or empty.
set -eu
umask 077
passwords=$1 rules=$2 users=$3 config=$4
acl=$(cat "$rules")
for program in worker router doctor; do
    file=$passwords/redis-$program-password
    password=$(cat "$file")
    if [ -z "$password" ]; then
        echo "$file: expected a password, got none" >&2
        exit 1
    fi
    hash=$(printf %s "$password" | sha256sum | cut -d ' ' -f 1)
    acl=$(printf '%s\n' "$acl" | sed "s/HASH_OF_$program/$hash/")
done
printf '%s\n' "$acl" > "$users"
exec redis-server "$config" --aclfile "$users"
