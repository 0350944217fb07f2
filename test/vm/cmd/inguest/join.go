package main

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/grpc/status"
	"gopkg.in/yaml.v3"
	runtime "k8s.io/cri-api/pkg/apis/runtime/v1"
)

// crictlConfig are the keys of /etc/crictl.yaml that nodeprep writes; crictl refuses a file with
// a key it does not know (cri-tools docs/crictl.md).
type crictlConfig struct {
	Runtime string `yaml:"runtime-endpoint"`
	Image   string `yaml:"image-endpoint"`
	Timeout int    `yaml:"timeout"` // seconds
}

// condition is one of the runtime's, with what it says of itself.
type condition struct {
	Status          bool
	Reason, Message string `json:",omitempty"`
}

// joined is what a kubelet learns of its runtime before it runs a pod, and what crictl info
// prints.
type joined struct {
	Endpoint   string // of crictl.yaml
	API        string
	Runtime    string // name and version
	Conditions map[string]condition
	// CgroupDriver is CRI's name of it, or the code of the answer where there is none.
	CgroupDriver string
	CNI          string // how it went with the CNI configuration when that was last read
	// SandboxImage is empty where the runtime does not tell.
	SandboxImage  string
	SystemdCgroup map[string]bool // by runtime
	Images        int
	// Info is Status, with all that a verbose one has: what crictl info prints.
	Info map[string]json.RawMessage
}

// join looks at the runtime as kubeadm, the kubelet and crictl do: through the endpoints of a
// crictl.yaml, within its timeout.
func join(ctx context.Context, file string) (*joined, error) {
	config, err := readCrictl(file)
	if err != nil {
		return nil, err
	}
	ctx, cancel := context.WithTimeout(ctx, time.Duration(config.Timeout)*time.Second)
	defer cancel()
	dial := func(endpoint string) (*grpc.ClientConn, error) {
		return grpc.NewClient(endpoint, grpc.WithTransportCredentials(insecure.NewCredentials()))
	}
	runtimeConn, err := dial(config.Runtime)
	if err != nil {
		return nil, fmt.Errorf("%s: runtime-endpoint: %w", file, err)
	}
	defer runtimeConn.Close()
	imageConn, err := dial(config.Image)
	if err != nil {
		return nil, fmt.Errorf("%s: image-endpoint: %w", file, err)
	}
	defer imageConn.Close()
	j, err := ask(ctx, runtime.NewRuntimeServiceClient(runtimeConn))
	if err != nil {
		return nil, err
	}
	j.Endpoint = config.Runtime
	images, err := runtime.NewImageServiceClient(imageConn).ListImages(ctx, &runtime.ListImagesRequest{})
	if err != nil {
		return nil, fmt.Errorf("list images: %w", err)
	}
	j.Images = len(images.Images)
	return j, nil
}

func readCrictl(file string) (*crictlConfig, error) {
	text, err := os.ReadFile(file)
	if err != nil {
		return nil, err
	}
	var c crictlConfig
	strict := yaml.NewDecoder(bytes.NewReader(text))
	strict.KnownFields(true)
	if err := strict.Decode(&c); err != nil {
		return nil, fmt.Errorf("read %s: %w", file, err)
	}
	if c.Runtime == "" || c.Image == "" || c.Timeout <= 0 {
		return nil, fmt.Errorf("read %s: no endpoint of both services, or no timeout: %+v", file, c)
	}
	return &c, nil
}

func ask(ctx context.Context, client runtime.RuntimeServiceClient) (*joined, error) {
	version, err := client.Version(ctx, &runtime.VersionRequest{})
	if err != nil {
		return nil, fmt.Errorf("ask for the version: %w", err)
	}
	answer, err := client.Status(ctx, &runtime.StatusRequest{Verbose: true})
	if err != nil {
		return nil, fmt.Errorf("ask for the status: %w", err)
	}
	j := &joined{
		API: version.RuntimeApiVersion, Runtime: version.RuntimeName + " " + version.RuntimeVersion,
		Conditions: make(map[string]condition), Info: make(map[string]json.RawMessage),
	}
	for _, c := range answer.Status.Conditions {
		j.Conditions[c.Type] = condition{c.Status, c.Reason, c.Message}
	}
	for name, text := range answer.Info {
		if !json.Valid([]byte(text)) { // some are plain text
			quoted, err := json.Marshal(text)
			if err != nil {
				return nil, err
			}
			text = string(quoted)
		}
		j.Info[name] = json.RawMessage(text)
	}
	j.CNI = answer.Info["lastCNILoadStatus"]
	if err := j.readConfig(answer.Info["config"]); err != nil {
		return nil, err
	}
	driver, err := client.RuntimeConfig(ctx, &runtime.RuntimeConfigRequest{})
	switch code := status.Code(err); {
	case code == codes.Unimplemented:
		j.CgroupDriver = code.String()
	case err != nil:
		return nil, fmt.Errorf("ask for the cgroup driver: %w", err)
	case driver.Linux == nil:
		return nil, errors.New("ask for the cgroup driver: an answer without it")
	default:
		j.CgroupDriver = driver.Linux.CgroupDriver.String()
	}
	return j, nil
}

// readConfig takes from the CRI plugin's configuration what kubeadm and people look for there.
func (j *joined) readConfig(text string) error {
	var config struct {
		SandboxImage string
		Containerd   struct {
			Runtimes map[string]struct {
				Options struct{ SystemdCgroup *bool }
			}
		}
	}
	if err := json.Unmarshal([]byte(text), &config); err != nil {
		return fmt.Errorf("read the runtime's config: %w", err)
	}
	j.SandboxImage, j.SystemdCgroup = config.SandboxImage, make(map[string]bool)
	for name, r := range config.Containerd.Runtimes {
		if r.Options.SystemdCgroup != nil {
			j.SystemdCgroup[name] = *r.Options.SystemdCgroup
		}
	}
	return nil
}
