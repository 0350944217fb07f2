package checks

import (
	"context"
	"fmt"
	"strings"
	"testing"
)

// Whatever a check quotes, and wherever it puts it, no secret leaves a run.
func TestSecretsAreMasked(t *testing.T) {
	const secret = "S3CR3T"
	for _, text := range []string{
		"https://user:S3CR3T@mirror.example.com/v2/",
		"https://user:S3CR3T%zz@m: invalid URL escape",
		"https://user:pass#S3CR3T@m",
		"https://user:a/S3CR3T@m",
		"https://user:a@S3CR3T@m",
		`[host."http://u:S3CR3T@10.0.0.1:5000"] is asked twice`,
		"user:S3CR3T@mirror.example.com has no scheme",
		"ftp://S3CR3T@m",
		"ExecStart=/usr/bin/x --token=S3CR3T --other",
		"ExecStart=/usr/bin/x --registry-password='S3CR3T and more'",
		"Environment=API_TOKEN=S3CR3T",
		"containerd --registry-password S3CR3T --config /etc/x",
		"SetCredential=a:S3CR3T and more",
		"password = S3CR3T",
	} {
		all := Result{Verdict: Fail, Object: text, Observed: text, Wanted: text, Place: text, Note: text, Remedy: "sed -i 's|" + text + "|x|' /etc/f"}
		c := made("a/a", Fail)
		c.Run = func(context.Context, *Node) []Result { return []Result{all} }
		got := fmt.Sprintf("%+v", run(t.Context(), fake(t, nil), Selection{}, []Check{c}))
		if strings.Contains(got, secret) {
			t.Errorf("%s is shown: %s", text, got)
		}
		if strings.Contains(got, "sed -i") {
			t.Errorf("lines that were cut are offered: %s", got)
		}
	}
}

// What is no secret stays as it is.
func TestPlainTextIsNotMasked(t *testing.T) {
	for _, text := range []string{
		"docker.io/library/busybox:1@sha256:0123",
		"registry.k8s.io/pause:3.10@sha512:ab",
		"https://mirror.example.com:5000/v2/",
		"/etc/systemd/system/containerd.service.d/50-x.conf:2",
		"unit containerd@1.service",
		"identitytoken is set",
		"/usr/bin/x --token-file /run/token --config /etc/x",
		"bootstrap-token is not set",
		"sed -i '/^[[:space:]]*config_path[[:space:]]*=/d' /etc/containerd/config.toml",
		"mount -o remount,exec /opt",
		"HTTPS_PROXY=http://proxy:3128",
		"--image-credential-provider-config is not set",
		"LoadCredential=harbor:/etc/credstore/harbor",
		"GOOGLE_APPLICATION_CREDENTIALS=/etc/x/key.json",
		"tls_key_file = \"/etc/x\", max_tokens = 5",
	} {
		if got := newMasker().text(text); got != text {
			t.Errorf("%q became %q", text, got)
		}
	}
}
