package supply

import "context"

// WriteISO writes an ISO 9660 image of a folder, with a label and the files' names as they
// are.
func WriteISO(ctx context.Context, image, label, dir string) error {
	_, err := run(ctx, nil, "genisoimage", "-quiet", "-output", image, "-volid", label, "-joliet", "-rock", dir)
	return err
}
