# Runs a command on a node that was drained, without the pods that a drain leaves: those of
# DaemonSets and static ones. The kubelet is down meanwhile, since it would start them anew,
# and comes back whatever becomes of the command: it is one run on the node, so that a
# connection that is lost ends nothing. Its own exit codes are 90 and 91.
set -u

back() {
	code=$?
	test "$kubelet" || exit "$code"
	# A kubelet that works reports to the API after this, by the node's own clock.
	echo "kubelet.service starts at $(date -u +%Y-%m-%dT%H:%M:%SZ)" >&2
	if ! systemctl start --no-block kubelet.service; then
		echo "systemctl start kubelet.service failed" >&2
		test "$code" -ne 0 || code=91
	fi
	exit "$code"
}

k8s() {
	socket=$(sed -n 's,^runtime-endpoint:.*unix://\([^"]*\).*,\1,p' /etc/crictl.yaml 2>/dev/null)
	ctr --address "${socket:-/run/containerd/containerd.sock}" --namespace k8s.io "$@"
}

pods() {
	if command -v crictl >/dev/null; then
		crictl rmp --all --force
		return
	fi
	# containerd's CRI plugin removes what has ended, too: whoever comes second fails.
	for task in $(k8s tasks list --quiet); do k8s tasks rm --force "$task"; done
	for container in $(k8s containers list --quiet); do k8s containers rm "$container"; done
	left=$(k8s containers list --quiet) && test -z "$left"
}

PATH=$PATH:/usr/local/bin:/usr/local/sbin:/usr/sbin:/sbin
kubelet=
trap back EXIT
# A signal to this shell does not keep it from its end; the command has its own.
trap : HUP INT TERM
# One between two tries is "activating".
case $(systemctl show --property ActiveState --value kubelet.service) in
active | activating | reloading)
	kubelet=yes
	systemctl stop kubelet.service >&2 || exit 90
	;;
esac
# A network addon is a pod, too, and what goes after it may need another try. Whether enough
# is gone the command judges: apply refuses, with words, while a pod is in its way.
for try in 1 2 3 4 5; do
	pods >&2 && break
	sleep 1
done
"$@"
