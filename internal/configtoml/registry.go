package configtoml

// Endpoints are those that registry.mirrors has for a name.
func (c *Config) Endpoints(mirror string) []string {
	t := c.at(below(c.images(), "registry", "mirrors", mirror)...)
	if !t.isTable() {
		return nil
	}
	return c.child(t, "endpoint").texts()
}

// LocalPull are the settings because of which containerd 2.1 and newer pull by themselves
// and not through the transfer service (CheckLocalImagePullConfigs in internal/cri/config of
// containerd 2.4.2). An older one knows no other way, and has none.
func (c *Config) LocalPull() []string {
	if !c.rules.AtLeast(2, 1, 0) {
		return nil
	}
	images := c.at(c.images()...)
	if images == nil {
		return nil
	}
	var out []string
	add := func(is bool, what string) {
		if is {
			out = append(out, what)
		}
	}
	add(images.get("use_local_image_pull").boolean(), "use_local_image_pull")
	annotations := images.get("disable_snapshot_annotations")
	add(annotations != nil && !annotations.boolean(), "disable_snapshot_annotations = false")
	add(images.get("discard_unpacked_layers").boolean(), "discard_unpacked_layers")
	for _, key := range []string{"mirrors", "configs", "auths"} {
		add(len(images.get("registry", key).keys()) > 0, "registry."+key)
	}
	if n := images.get("max_concurrent_downloads"); n != nil {
		parallel, _ := n.number()
		add(parallel != 3, "max_concurrent_downloads")
	}
	add(images.get("image_pull_with_sync_fs").boolean(), "image_pull_with_sync_fs")
	return out
}
