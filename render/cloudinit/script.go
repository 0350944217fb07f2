package cloudinit

import (
	"fmt"
	"strings"
	"time"

	"github.com/nodeprep/nodeprep/internal/diag"
)

// Limited is what a run has beside waiting for what comes from elsewhere: 25 minutes for the
// work, 10 to end a run that was interrupted before, and a few to wait for the time and for
// another nodeprep, and to write down what it came to.
const Limited = 40 * time.Minute

// resultPath is where a run writes down what it came to: install.ResultPath.
const resultPath = "/var/lib/nodeprep/result.json"

// fetch is the script that gets nodeprep: POSIX, with what every image has. What came is not
// executable, and has a name that nobody calls, until its sha256 is right.
//
// The program is that of the first boot. Whoever has put another one in its place since, a
// later apply above all, keeps it: where the result tells of this user-data the program in
// place is asked whether anything is left to do at all, before something is fetched for it.
// Nor does what was fetched replace a newer one: that may have left what an older one cannot
// read.
//
// What fails is written down as nodeprep itself would do it, were it there: install.BootResult,
// with the receipt that was found, since a later run must know whether somebody else has
// applied something meanwhile. Where that cannot be told, nothing is written. The names of
// its temporary files are those that nodeprep clears away.
func (in Input) fetch() []byte {
	get := in.fromURL()
	from := shown(in.ProgramURL)
	if in.ProgramURL == "" {
		get, from = in.fromDisk(), ProgramFile+" on the disk "+in.Device
	}
	digests := `"profile": "` + Digest(in.Files) + `"`
	if in.BundleSHA256 != "" {
		digests += `, "bundle": "` + in.BundleSHA256 + `"`
	}
	return []byte(`#!/bin/sh
# made by nodeprep: gets ` + program + ` and trusts nothing but its sha256.
set -u
umask 022
to=` + program + `
want=` + in.ProgramSHA256 + `
from=` + diag.ShellWord(from) + `
result=` + resultPath + `
say() { echo "nodeprep: $*" >&2; }
sum() { sha256sum "$1" | cut -c1-64; }
# Not the time of day, which may be set meanwhile.
now() { cut -d. -f1 /proc/uptime; }
left() {
  n=$((end - $(now)))
  [ $n -ge 1 ] || n=1
  echo $n
}
# fail WHY writes the result that nodeprep would write.
fail() {
  say "$1"
  umask 077
  dir=${result%/*}
  seen=$(sed -n -e 's/^ "id":/ "receipt":/p' -e '/^ "generation":/p' -e 's/^ "time":/ "applied":/p' "$dir/receipt.json" 2>/dev/null)
  # Of a receipt that somebody has written in another way nothing is told, rather than what is wrong.
  [ ! -e "$dir/receipt.json" ] || [ "$(echo "$seen" | wc -l)" -eq 3 ] || exit 1
  made=$(sed -n 's/^ "made": \([0-9]*\).*/\1/p' "$result" 2>/dev/null)
  error=$(printf %s "$1" | tr '\001-\037' ' ' | sed 's/[\\"]/\\&/g')
  id=nodeprep-$(printf %016x $$)XXXXXX
  at=$dir
  [ -d "$dir" ] || { made=1 && at=$(mktemp -d "${dir%/*}/.${dir##*/}.$id"); } || exit 1
  file=$(mktemp "$at/.result.json.$id") || exit 1
  cat >"$file" <<END && sync && mv -f "$file" "$at/${result##*/}" && { [ "$at" = "$dir" ] || mv "$at" "$dir"; } && sync
{
 "format": 1,
 "verb": "cloud-init",
 "nodeprep": "` + in.Version + `",
 "began": "$began",
 "ended": "$(date -u +%Y-%m-%dT%H:%M:%SZ)",
 "seconds": $(($(now) - start)),
$seen
 "boot": "$(cat /proc/sys/kernel/random/boot_id)",
 "outcome": "failed",
 "exitCode": 1,
 "error": "$error",
 "digests": {` + digests + `},
 "made": ${made:-0}
}
END
  exit 1
}
# version PROGRAM prints the numbers of what it says.
version() { timeout -k 5 60 "$1" version </dev/null 2>/dev/null | sed -n 's/^nodeprep v\{0,1\}\([0-9][0-9.]*\).*/\1/p'; }
began=$(date -u +%Y-%m-%dT%H:%M:%SZ)
start=$(now)
end=$((start + ` + fmt.Sprint(int(in.Wait.Seconds())) + `))
trap 'rm -f "${new-}"' EXIT
trap 'fail "getting $from was interrupted"' HUP INT TERM
mkdir -p "${to%/*}"
[ -x $to ] && {
  [ "$(sum $to)" = $want ] && exit
  # Another one: whoever put it there may have left nothing to do.
  grep -qs ` + Digest(in.Files) + ` "$result" && timeout -k 5 60 $to ` + in.settled() + ` </dev/null >/dev/null 2>&1 && exit
}
rm -f "${to%/*}"/.nodeprep.??????????
new=$(mktemp "${to%/*}/.nodeprep.XXXXXXXXXX") || fail "cannot write into ${to%/*}"
` + get + `
said=
while :; do
  why=$(get 2>&1)
  code=$?
  [ $code = 0 ] && break
  # A signature in an address is nobody's business.
  why=$(printf %s "$why" | sed 's/?[^ ]*/?xxxxx/g' | tr '\n' ' ' | cut -c1-300)
  case $why in
  *" 408"* | *" 429"*) ;;
  *[Ee][Rr][Rr][Oo][Rr]" 4"[0-9][0-9]* | *"error: 4"[0-9][0-9]* | *"error: HTTP/"*" 4"[0-9][0-9]*) code=99 ;;
  esac
  [ $code = 99 ] && fail "cannot get $from: $why"
  [ "$(now)" -lt $end ] || fail "cannot get $from: gave up after ` + span(in.Wait) + `: $why"
  [ "$why" = "$said" ] || say "cannot get $from yet: $why"
  said=$why
  n=$(left)
  [ $n -le 5 ] || n=5
  sleep $n
done
got=$(sum "$new")
[ "$got" = $want ] || fail "refused $from: its sha256 is $got, want $want; nothing was executed"
chmod 755 "$new" || fail "cannot write $to"
there=
[ ! -x $to ] || there=$(version $to)
came=$(version "$new")
if [ "$there" ] && [ "$came" ] && [ "$there" != "$came" ] && [ "$(printf '%s\n' "$there" "$came" | sort -V | tail -n 1)" = "$there" ]; then
  say "$to stays: it is nodeprep $there, and $from is $came"
  exit
fi
sync && mv -f "$new" $to && sync || fail "cannot write $to"
`)
}

// fromURL gets it by what is there. What stalls ends after half a minute and is tried again,
// what drips at the deadline. Code 99 is that there is no use in that.
func (in Input) fromURL() string {
	return `url=` + diag.ShellWord(in.ProgramURL) + `
get() {
  if command -v curl >/dev/null; then
    curl -gfsSL --connect-timeout 30 --speed-limit 1 --speed-time 30 -m "$(left)" -o "$new" "$url"
  elif command -v wget >/dev/null; then
    timeout -k 5 "$(left)" wget -nv -T 30 -t 1 -O "$new" "$url"
  elif command -v python3 >/dev/null; then
    timeout -k 5 "$(left)" python3 -c 'import shutil, sys, urllib.request
try:
    with urllib.request.urlopen(sys.argv[1], timeout=30) as r, open(sys.argv[2], "wb") as f:
        shutil.copyfileobj(r, f)
        if r.length:
            sys.exit("the connection broke")
except Exception as e:
    sys.exit(str(e))' "$url" "$new"
  else
    echo "none of curl, wget and python3 is here"
    return 99
  fi
}`
}

// fromDisk copies it from a disk with a label, which may come late.
func (in Input) fromDisk() string {
	return `get() {
  [ -e "$disk" ] || { echo "there is no such disk" && return 1; }
  at=$(mktemp -d /run/nodeprep.XXXXXXXXXX) || return 1
  # What cannot be mounted may be in a moment.
  code=1
  if timeout -k 5 "$(left)" mount -o ro,nosuid,nodev,noexec "$disk" "$at"; then
    if [ -f "$at/` + ProgramFile + `" ] && [ ! -L "$at/` + ProgramFile + `" ]; then
      timeout -k 5 "$(left)" cp "$at/` + ProgramFile + `" "$new"
      code=$?
    else
      echo "it has no such file at its top"
      code=99
    fi
    umount "$at" || umount -l "$at"
  fi
  rmdir "$at"
  return $code
}
disk=` + ByLabel + in.Device
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

// plain are the characters that mean themselves to systemd.
const plain = "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789/.,:_+@=-"

// shown is a URL without its query, which may hold a signature.
func shown(url string) string {
	bare, _, _ := strings.Cut(url, "?")
	return bare
}
