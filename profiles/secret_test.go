package profiles_test

import (
	"encoding/json"
	"fmt"
	"os"
	"strings"
	"testing"

	"github.com/nodeprep/nodeprep/profiles"
)

func settingsProfile(yaml string) string {
	return "apiVersion: nodeprep/v1alpha1\nkind: NodeProfile\ncontainerd:\n  version: 2.3.4\n  settings:\n    plugins:\n      io.containerd.x.v1.y:\n        " +
		strings.ReplaceAll(yaml, "\n", "\n        ") + "\n"
}

func loadText(t *testing.T, text string) *profiles.Profile {
	t.Helper()
	p, list := profiles.Load("node.yaml", func(string) ([]byte, error) { return []byte(text), nil })
	if list.HasErrors() {
		t.Fatalf("%v\n%s", list, text)
	}
	return p
}

// Whatever holds a secret among values of others is not flattened with it, does not go
// along unasked, and makes its file secret.
func TestFreeSecrets(t *testing.T) {
	for _, yaml := range []string{
		"note: |\n  -----BEGIN PRIVATE KEY-----\n  S3CRET\n  -----END PRIVATE KEY-----",
		"note: [\"text\\n-----BEGIN PGP PRIVATE KEY BLOCK-----\\n\\nS3CRET\"]",
		"deep: {a: [{b: \"-----BEGIN OPENSSH PRIVATE KEY-----\\nS3CRET\"}]}",
		"passphrase: S3CRET", "privkey: S3CRET", "private_key: S3CRET", "privateKey: S3CRET", "bearer: S3CRET", "creds: S3CRET", "aws_creds: S3CRET",
		"credentials: S3CRET", "accesskey: S3CRET", "access_key: S3CRET", "apikey: S3CRET", "api-key: S3CRET", "X-Api-Key: S3CRET", "apiKey: S3CRET",
		"client-key-data: S3CRET", "db_pass: S3CRET", "psk: S3CRET", "cookie: S3CRET", "Authorization: S3CRET", "token_2: S3CRET",
		"tokens: [S3CRET]", "credentials: {value: S3CRET}", "headers: {X-Note: S3CRET}", "auths: {h: {x: S3CRET}}",
		"env: [\"A=b\", \"OCICRYPT_PASSWORD=S3CRET\"]", "env: [\"TOKEN='S3CRET and more'\"]", "environment: \"A=b OTHER_TOKEN=S3CRET\"",
		"env: [\"HEADERS=authorization=S3CRET\"]", "json: '{\"user\":\"a\",\"password\":\"S3CRET\"}'", "ini: |\n  user = a\n  password = S3CRET", "yml: |\n  user: a\n  password: S3CRET",
		"cmd: [\"--password=S3CRET\"]", "cmd: [run, --password, S3CRET]", "args: [--auth, S3CRET]", "args: [\"--key-data=S3CRET\"]",
		"cmd: [login, -u, me, -p, S3CRET, host]", "cmd: [tool, \"--username=me\", -p, S3CRET]", "cmd: [/usr/bin/sshpass, -p, S3CRET]",
		"cmd: /usr/bin/x --password S3CRET --other", "cmd: docker login -u me -p S3CRET host", "cmd: [curl, -H, \"Authorization: Bearer S3CRET\"]",
		"dsn: \"user:S3CRET@tcp(h:3306)/x\"", "url: \"https://me:S3CRET@h/\"", "url: \"https://h/?token=S3CRET\"",
	} {
		t.Run(yaml, func(t *testing.T) {
			p := loadText(t, settingsProfile(yaml))
			flat, err := json.Marshal(p.Flat())
			if err != nil || strings.Contains(string(flat), "S3CRET") {
				t.Errorf("flattened to %s, %v", flat, err)
			}
			if !profiles.HasSecret(p.Containerd.Settings) {
				t.Error("not found among the settings")
			}
			portable, list := p.Portable(profiles.PortableOptions{})
			if len(list) != 1 || !portable.Secret || list[0].Line < 8 || strings.Contains(fmt.Sprint(list), "S3CRET") {
				t.Errorf("goes along: %v", list)
			}
			portable, list = p.Portable(profiles.PortableOptions{WithSecrets: true})
			if text, err := portable.YAML(nil); err != nil || list.HasErrors() || !strings.Contains(string(text), "S3CRET") || strings.Contains(string(text), profiles.Masked) {
				t.Errorf("does not go along when asked for: %s %v %v", text, list, err)
			}
		})
	}
}

// What only has to do with secrets is taken along and shown.
func TestFreeValuesThatAreNoSecrets(t *testing.T) {
	for _, yaml := range []string{
		"keyPath: /etc/pki/tls.key", "tokenFile: relative-token", "token_file: /run/token", "TOKEN_PATH: ./x", "authfile: auth.json", "passwordfile: pw", "credentials: /etc/x/creds.json",
		"private_key: /etc/pki/Key-1.pem", "private_key: file:///etc/pki/key.pem", "password: \"${PASSWORD}\"", "secret_name: pull-secret", "auth: true", "token: none",
		"max_tokens: 5", "token_ttl: 300", "token_lifetime: 300", "number_of_secrets: 7", "secrets: 2", "token_age: 5s", "require_password: false", "auth_enable: 1", "authMode: Webhook",
		"bypass: yes-please", "key_model: node", "tls_key_file: \"\"", "compass: north", "monkey: banana", "key: value", "pin: abc", "author: someone", "authors: [a, b]",
		"args: [--decryption-keys-path, /etc/containerd/ocicrypt/keys]", "env: [\"OCICRYPT_KEYPROVIDER_CONFIG=/etc/containerd/ocicrypt/ocicrypt_keyprovider.conf\"]",
		"args: [--token-file, /run/token, --password-file=/run/password]", "args: [--token, /run/secrets/token]", "args: [--password, --other]", "args: [get-credentials, \"--v=3\"]",
		"cmd: [ssh, -u, me, -p, 22, host]", "cmd: [mkdir, -p, S]", "cmd: mkdir -p /run/x", "image: docker.io/library/vault-token:1.2", "image: \"busybox:1@sha256:0123\"",
		"note: \"a secret is not here: see the token-handbook\"", "note: \"-----BEGIN CERTIFICATE-----\\nMII\\n-----END CERTIFICATE-----\"", "note: \"public key\"",
		"url: https://auth.example.com/token", "at: \"git@example.com:project\"", "secret-store: {type: snapshot, address: /run/x}", "credHelpers: {h: ecr-login}",
	} {
		t.Run(yaml, func(t *testing.T) {
			p := loadText(t, settingsProfile(yaml))
			flat, err := json.Marshal(p.Flat())
			if err != nil || strings.Contains(string(flat), profiles.Masked) || strings.Contains(string(flat), "xxxxx") {
				t.Errorf("flattened to %s, %v", flat, err)
			}
			if portable, list := p.Portable(profiles.PortableOptions{}); len(list) > 0 || portable.Secret || profiles.HasSecret(p.Containerd.Settings) {
				t.Errorf("taken for a secret: %v", list)
			}
		})
	}
}

// Variables, arguments, kernel parameters and headers are judged as settings are.
func TestSecretsElsewhere(t *testing.T) {
	const text = `apiVersion: nodeprep/v1alpha1
kind: NodeProfile
registries:
  r.example.com:
    header:
      X-Creds: S3CRET
      X-Note: "password=S3CRET"
      X-Token-Type: kept-header
systemd:
  environment: {A_PASSPHRASE: S3CRET, B: "TOKEN=S3CRET", TOKEN_FILE: kept-file}
host:
  sysctl: {net.ipv6.conf.all.stable_secret: "2001:db8::1", net.ipv4.tcp_syncookies: 1, net.sctp.auth_enable: 1}
kubelet:
  credentialProviders:
    - name: p
      matchImages: [kept.example.com]
      args: [--auth, S3CRET, "--key-data=S3CRET", -u, me,
        -p, S3CRET]
      env: {AWS_SECRET_ACCESS_KEY: S3CRET, AWS_REGION: kept-region}
`
	p := loadText(t, text)
	flat, err := json.Marshal(p.Flat())
	if err != nil || strings.Contains(string(flat), "S3CRET") || strings.Contains(string(flat), "2001:") {
		t.Errorf("flattened to %s, %v", flat, err)
	}
	for _, kept := range []string{"kept-file", "kept.example.com", "kept-region", `"net.ipv4.tcp_syncookies":"1"`, `"net.sctp.auth_enable":"1"`} {
		if !strings.Contains(string(flat), kept) {
			t.Errorf("%s is lost: %s", kept, flat)
		}
	}
	_, list := p.Portable(profiles.PortableOptions{})
	var lines []int
	for _, d := range list {
		lines = append(lines, d.Line)
	}
	if got := fmt.Sprint(lines); got != "[6 7 10 10 12 17 17 18 19]" {
		t.Errorf("refused in lines %v:\n%v", got, list)
	}
	spec, list := profiles.Resolve(p, profiles.Facts{Arch: "amd64"})
	if list.HasErrors() {
		t.Fatal(list)
	}
	for _, h := range spec.Registries[0].Server.Header {
		if plain := h.Values[0].Plain; plain != (h.Name == "X-Token-Type") {
			t.Errorf("header %s: plain is %v", h.Name, plain)
		}
	}
	warned := fmt.Sprint(list)
	for _, at := range []string{"header.X-Creds", "header.X-Note", "environment.A_PASSPHRASE"} {
		if !strings.Contains(warned, at) {
			t.Errorf("no warning of %s: %s", at, warned)
		}
	}
	if strings.Contains(warned, "TOKEN_FILE") {
		t.Errorf("warned of the name of a file: %s", warned)
	}
}

// No message repeats a value that sounds secret where it is of the wrong kind.
func TestFaultsHaveNoFreeSecrets(t *testing.T) {
	for _, text := range []string{
		"containerd:\n  settings:\n    plugins: {x: {access_key: 0123456}}\n",
		"containerd:\n  settings:\n    plugins: {x: {creds: 0123456}}\n",
		"kubelet:\n  credentialProviders: [{name: p, matchImages: [a], env: \"PASSPHRASE=0123456\"}]\n",
		"systemd: {environment: \"PASSPHRASE=0123456\"}\n",
	} {
		_, list := profiles.Load("node.yaml", func(string) ([]byte, error) {
			return []byte("apiVersion: nodeprep/v1alpha1\nkind: NodeProfile\n" + text), nil
		})
		if !list.HasErrors() || strings.Contains(fmt.Sprint(list), "0123456") {
			t.Errorf("%s%v", text, list)
		}
	}
}

// Nothing in the built-ins and examples is taken for a secret that is none.
func TestExamplesHaveNoFreeSecrets(t *testing.T) {
	entries, err := os.ReadDir("../examples")
	if err != nil {
		t.Fatal(err)
	}
	names := profiles.BuiltIns()
	for _, e := range entries {
		if strings.HasSuffix(e.Name(), ".yaml") {
			names = append(names, "../examples/"+e.Name())
		}
	}
	for _, name := range names {
		p, list := profiles.Load(name, os.ReadFile)
		if list.HasErrors() {
			t.Fatal(list)
		}
		for _, values := range []any{p.Containerd.Settings, p.Host.Sysctl, p.Systemd.Environment} {
			if profiles.HasSecret(values) {
				t.Errorf("%s: %v", name, values)
			}
		}
	}
}

func TestMaskSecretsLeavesTheRest(t *testing.T) {
	for in, want := range map[string]string{
		"a TOKEN=x b":                            "a TOKEN=# b",
		"a --token x --password=y b":             "a --token # --password=# b",
		`{"password": "a \" b", "user": "c"}`:    `{"password": #, "user": "c"}`,
		"Environment=A=b API_KEY='c d' E=f":      "Environment=A=b API_KEY=# E=f",
		"me:pw@h busybox:1@sha256:ab":            "#@h busybox:1@sha256:ab",
		"https://me@h/x":                         "https://me@h/x",
		"key -----BEGIN EC PRIVATE KEY-----\nA=": "key #",
		"LoadCredential=a:/etc/x/token":          "LoadCredential=a:/etc/x/token",
		"--token":                                "--token",
		"token=":                                 "token=",
		"":                                       "",
	} {
		if got := profiles.MaskSecrets(in, "#"); got != want {
			t.Errorf("%q became %q, want %q", in, got, want)
		}
	}
}
