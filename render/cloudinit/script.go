package cloudinit

import (
	"fmt"
	"strings"
	"time"
)

// Limited is what a run has beside waiting for what comes from elsewhere.
const Limited = 30 * time.Minute

// fetch is the script that gets nodeprep: POSIX, with what every image has. What came is not
// executable, and has a name that nobody calls, until its sha256 is right.
func (in Input) fetch() []byte {
	get := in.fromURL()
	from := shown(in.ProgramURL)
	if in.ProgramURL == "" {
		get, from = in.fromDisk(), ProgramFile+" on the disk "+in.Device
	}
	return []byte(`#!/bin/sh
# made by nodeprep: gets ` + program + ` and trusts nothing but its sha256.
set -u
umask 022
to=` + program + `
want=` + in.ProgramSHA256 + `
from=` + quote(from) + `
say() { echo "nodeprep: $*" >&2; }
sum() { sha256sum "$1" | cut -c1-64; }
# Not the time of day, which may be set meanwhile.
now() { cut -d. -f1 /proc/uptime; }
left() {
  n=$((end - $(now)))
  [ $n -ge 1 ] || n=1
  echo $n
}
mkdir -p "${to%/*}" || exit
[ -x $to ] && [ "$(sum $to)" = $want ] && exit
rm -f "${to%/*}"/.nodeprep.??????????
new=$(mktemp "${to%/*}/.nodeprep.XXXXXXXXXX") || exit
trap 'rm -f "$new"' EXIT
trap 'exit 1' HUP INT TERM
end=$(($(now) + ` + fmt.Sprint(int(in.Wait.Seconds())) + `))
` + get + `
until get; do
  if [ "$(left)" -le 5 ]; then
    say "cannot get $from: gave up after ` + span(in.Wait) + `"
    exit 1
  fi
  sleep 5
done
got=$(sum "$new")
if [ "$got" != $want ]; then
  say "refused $from: its sha256 is $got, want $want; nothing was executed"
  exit 1
fi
chmod 755 "$new" && sync && mv -f "$new" $to && sync
`)
}

// fromURL gets it by what is there. What stalls ends after half a minute and is tried again,
// what drips at the deadline.
func (in Input) fromURL() string {
	return `url=` + quote(in.ProgramURL) + `
get() {
  if command -v curl >/dev/null; then
    curl -fsSL --connect-timeout 30 --speed-limit 1 --speed-time 30 -m "$(left)" -o "$new" "$url"
  elif command -v wget >/dev/null; then
    timeout "$(left)" wget -q -T 30 -t 1 -O "$new" "$url"
  elif command -v python3 >/dev/null; then
    timeout "$(left)" python3 -c 'import shutil, sys, urllib.request
with urllib.request.urlopen(sys.argv[1], timeout=30) as r, open(sys.argv[2], "wb") as f:
    shutil.copyfileobj(r, f)' "$url" "$new"
  else
    say "none of curl, wget and python3 is here"
    exit 1
  fi
}`
}

// fromDisk copies it from a disk with a label, which may come late.
func (in Input) fromDisk() string {
	return `get() {
  [ -e ` + ByLabel + in.Device + ` ] || return 1
  at=$(mktemp -d /run/nodeprep.XXXXXXXXXX) || return 1
  mount -o ro,nosuid,nodev,noexec ` + ByLabel + in.Device + ` "$at" && {
    cp "$at/` + ProgramFile + `" "$new"
    ok=$?
    umount "$at"
  }
  rmdir "$at"
  return ${ok:-1}
}`
}

// span is a length of time, without units that are zero.
func span(d time.Duration) string {
	s := d.String()
	if strings.HasSuffix(s, "m0s") {
		s = strings.TrimSuffix(s, "0s")
	}
	if strings.HasSuffix(s, "h0m") {
		s = strings.TrimSuffix(s, "0m")
	}
	return s
}

// quote is for sh.
func quote(s string) string { return "'" + strings.ReplaceAll(s, "'", `'\''`) + "'" }

// shown is a URL without its query, which may hold a signature.
func shown(url string) string {
	bare, _, _ := strings.Cut(url, "?")
	return bare
}
