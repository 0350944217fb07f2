package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"slices"

	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials/insecure"
	runtime "k8s.io/cri-api/pkg/apis/runtime/v1"
)

// slice is where the pods' scopes are: with the systemd cgroup driver a parent is a slice.
const slice = "nodeprep-test.slice"

// container is a running container and its first process.
type container struct {
	Name, ID     string
	PID          int
	Pod          string // the sandbox's id
	PodPID       int
	SandboxImage string
	IP           string
}

// cri does what a kubelet would, over the socket it would use.
func cri(ctx context.Context, socket, verb string, args []string) (any, error) {
	conn, err := grpc.NewClient("unix://"+socket, grpc.WithTransportCredentials(insecure.NewCredentials()))
	if err != nil {
		return nil, err
	}
	defer conn.Close()
	k := kubelet{runtime.NewRuntimeServiceClient(conn), runtime.NewImageServiceClient(conn)}
	switch {
	case verb == "status" && len(args) == 0:
		return k.status(ctx)
	case verb == "images" && len(args) == 0:
		return k.imageNames(ctx)
	case verb == "image" && len(args) == 1:
		return k.image(ctx, args[0])
	case verb == "pull" && (len(args) == 1 || len(args) == 3):
		return nil, k.pull(ctx, args[0], args[1:])
	case verb == "run" && len(args) >= 2:
		return k.run(ctx, args[0], args[1], args[2:])
	case verb == "ps" && len(args) == 0:
		return k.ps(ctx)
	case verb == "rm" && len(args) == 1:
		return nil, k.remove(ctx, args[0])
	default:
		return nil, errUsage
	}
}

type kubelet struct {
	runtime runtime.RuntimeServiceClient
	images  runtime.ImageServiceClient
}

// status is the runtime's version, its conditions, and the config its CRI plugin runs with.
func (k kubelet) status(ctx context.Context) (any, error) {
	version, err := k.runtime.Version(ctx, &runtime.VersionRequest{})
	if err != nil {
		return nil, err
	}
	status, err := k.runtime.Status(ctx, &runtime.StatusRequest{Verbose: true})
	if err != nil {
		return nil, err
	}
	conditions := make(map[string]bool)
	for _, c := range status.Status.Conditions {
		conditions[c.Type] = c.Status
	}
	info := make(map[string]json.RawMessage)
	for name, text := range status.Info {
		if json.Valid([]byte(text)) {
			info[name] = json.RawMessage(text)
		}
	}
	return map[string]any{
		"version": version.RuntimeVersion, "api": version.RuntimeApiVersion,
		"conditions": conditions, "info": info,
	}, nil
}

func (k kubelet) imageNames(ctx context.Context) (any, error) {
	list, err := k.images.ListImages(ctx, &runtime.ListImagesRequest{})
	if err != nil {
		return nil, err
	}
	type image struct {
		Names  []string
		Pinned bool
	}
	all := []image{}
	for _, i := range list.Images {
		all = append(all, image{i.RepoTags, i.Pinned})
	}
	return all, nil
}

// image is what a kubelet asks before it would pull.
func (k kubelet) image(ctx context.Context, name string) (any, error) {
	status, err := k.images.ImageStatus(ctx, &runtime.ImageStatusRequest{Image: &runtime.ImageSpec{Image: name}})
	if err != nil {
		return nil, err
	}
	if status.Image == nil {
		return nil, fmt.Errorf("image %s is not there", name)
	}
	return map[string]any{"names": status.Image.RepoTags, "pinned": status.Image.Pinned}, nil
}

// pull is what a kubelet does with a pod's image; a user and a password are the pod's pull
// secret.
func (k kubelet) pull(ctx context.Context, name string, login []string) error {
	request := &runtime.PullImageRequest{Image: &runtime.ImageSpec{Image: name}}
	if len(login) == 2 {
		request.Auth = &runtime.AuthConfig{Username: login[0], Password: login[1]}
	}
	_, err := k.images.PullImage(ctx, request)
	return err
}

// labels are what a kubelet puts on a pod and its containers, and some more, in pairs.
func labels(pod string, more ...string) map[string]string {
	all := map[string]string{"io.kubernetes.pod.name": pod, "io.kubernetes.pod.namespace": "default", "io.kubernetes.pod.uid": pod}
	for pair := range slices.Chunk(more, 2) {
		all[pair[0]] = pair[1]
	}
	return all
}

func (k kubelet) run(ctx context.Context, name, image string, command []string) (any, error) {
	pod := &runtime.PodSandboxConfig{
		Metadata: &runtime.PodSandboxMetadata{Name: name, Uid: name, Namespace: "default"},
		Labels:   labels(name),
		Hostname: name,
		Linux:    &runtime.LinuxPodSandboxConfig{CgroupParent: slice},
	}
	// Without a network of nodeprep's making, a pod has the node's.
	status, err := k.runtime.Status(ctx, &runtime.StatusRequest{})
	if err != nil {
		return nil, err
	}
	for _, c := range status.Status.Conditions {
		if c.Type == runtime.NetworkReady && !c.Status {
			pod.Hostname = ""
			pod.Linux.SecurityContext = &runtime.LinuxSandboxSecurityContext{
				NamespaceOptions: &runtime.NamespaceOption{Network: runtime.NamespaceMode_NODE},
			}
		}
	}
	sandbox, err := k.runtime.RunPodSandbox(ctx, &runtime.RunPodSandboxRequest{Config: pod})
	if err != nil {
		return nil, fmt.Errorf("run pod: %w", err)
	}
	created, err := k.runtime.CreateContainer(ctx, &runtime.CreateContainerRequest{
		PodSandboxId: sandbox.PodSandboxId, SandboxConfig: pod,
		Config: &runtime.ContainerConfig{
			Metadata: &runtime.ContainerMetadata{Name: name},
			Labels:   labels(name, "io.kubernetes.container.name", name),
			Image:    &runtime.ImageSpec{Image: image},
			Command:  command,
			// What a kubelet gives a container that asks for nothing; without it, it would
			// be protected as its shim is.
			Linux: &runtime.LinuxContainerConfig{Resources: &runtime.LinuxContainerResources{OomScoreAdj: 1000}},
		},
	})
	if err != nil {
		return nil, fmt.Errorf("create container: %w", err)
	}
	if _, err := k.runtime.StartContainer(ctx, &runtime.StartContainerRequest{ContainerId: created.ContainerId}); err != nil {
		return nil, fmt.Errorf("start container: %w", err)
	}
	return k.inspect(ctx, name, created.ContainerId, sandbox.PodSandboxId)
}

func (k kubelet) inspect(ctx context.Context, name, id, pod string) (*container, error) {
	c, err := k.runtime.ContainerStatus(ctx, &runtime.ContainerStatusRequest{ContainerId: id, Verbose: true})
	if err != nil {
		return nil, err
	}
	s, err := k.runtime.PodSandboxStatus(ctx, &runtime.PodSandboxStatusRequest{PodSandboxId: pod, Verbose: true})
	if err != nil {
		return nil, err
	}
	var inside, outside struct {
		PID   int    `json:"pid"`
		Image string `json:"image"`
	}
	if err := errors.Join(
		json.Unmarshal([]byte(c.Info["info"]), &inside),
		json.Unmarshal([]byte(s.Info["info"]), &outside),
	); err != nil {
		return nil, fmt.Errorf("read containerd's verbose status: %w", err)
	}
	return &container{
		Name: name, ID: id, PID: inside.PID, Pod: pod, PodPID: outside.PID,
		SandboxImage: outside.Image, IP: s.Status.GetNetwork().GetIp(),
	}, nil
}

func (k kubelet) ps(ctx context.Context) (any, error) {
	list, err := k.runtime.ListContainers(ctx, &runtime.ListContainersRequest{
		Filter: &runtime.ContainerFilter{State: &runtime.ContainerStateValue{State: runtime.ContainerState_CONTAINER_RUNNING}},
	})
	if err != nil {
		return nil, err
	}
	all := []*container{}
	for _, c := range list.Containers {
		one, err := k.inspect(ctx, c.Metadata.Name, c.Id, c.PodSandboxId)
		if err != nil {
			return nil, err
		}
		all = append(all, one)
	}
	return all, nil
}

func (k kubelet) remove(ctx context.Context, name string) error {
	list, err := k.runtime.ListPodSandbox(ctx, &runtime.ListPodSandboxRequest{})
	if err != nil {
		return err
	}
	for _, pod := range list.Items {
		if pod.Metadata.Name != name {
			continue
		}
		if _, err := k.runtime.StopPodSandbox(ctx, &runtime.StopPodSandboxRequest{PodSandboxId: pod.Id}); err != nil {
			return err
		}
		if _, err := k.runtime.RemovePodSandbox(ctx, &runtime.RemovePodSandboxRequest{PodSandboxId: pod.Id}); err != nil {
			return err
		}
	}
	return nil
}
