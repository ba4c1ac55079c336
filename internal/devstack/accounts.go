package devstack

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"

	"vmimport/internal/auth/ram"
	"vmimport/internal/auth/ramfile"
	"vmimport/internal/secret"
)

// accountsFile is written into the data directory if it is not there. Who runs
// standalone may edit it: add accounts, take rights away, and see what becomes of it.
const accountsFile = "accounts.yaml"

// account is the one of the ECS ImportImage API.
const account = "1000000000000001"

// saveAccounts writes the file if it is not there, or has no key that is known any more:
// then the old one is kept beside it.
func saveAccounts(dir string, c *Credentials) error {
	path := filepath.Join(dir, accountsFile)
	_, err := os.Stat(path)
	switch {
	case err == nil && !c.newKey:
		return nil
	case err == nil:
		err = os.Rename(path, path+".old")
	case errors.Is(err, fs.ErrNotExist):
		err = nil
	}
	if err != nil {
		return fmt.Errorf("keep accounts: %w", err)
	}
	file, err := ramfile.Standalone{
		AccountID: account,
		Project:   c.ProjectID,
		KeyID:     c.AccessKeyID,
		Secret:    secret.New(c.AccessKeySecret),
		Bucket:    ram.Bucket{Name: container, Region: AliyunRegion},
	}.File()
	if err != nil {
		return err
	}
	return replace(path, file)
}

// replace writes a file in one step; only the owner may read it.
func replace(path string, content []byte) error {
	dir, name := filepath.Split(path)
	tmp, err := os.CreateTemp(dir, "."+name+"-*") // made with mode 0600
	if err != nil {
		return fmt.Errorf("write %s: %w", name, err)
	}
	_, err = tmp.Write(content)
	// Synced, since the owner of all imports must not change after a power failure.
	if err = errors.Join(err, tmp.Sync(), tmp.Close()); err == nil {
		err = os.Rename(tmp.Name(), path)
	}
	if err != nil {
		return errors.Join(fmt.Errorf("write %s: %w", name, err), os.Remove(tmp.Name()))
	}
	return nil
}
