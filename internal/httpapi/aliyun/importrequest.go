package aliyun

import (
	"crypto/sha256"
	"encoding/hex"
	"fmt"
	"maps"
	"slices"
	"strings"
)

// importRequest is what an ImportImage asks for, as far as it alone can tell.
type importRequest struct {
	details
	name, osType string
	clientToken  string
	role         string // empty: the default
	dryRun       bool
}

// Values that other parameters depend on.
const (
	archX86  = "x86_64"
	archARM  = "arm64"
	bootBIOS = "BIOS"
	bootUEFI = "UEFI"
)

// architectures has Glance's names of them.
var architectures = map[string]string{archX86: "x86_64", "i386": "i686", archARM: "aarch64"}

// parseImport reads the parameters of an ImportImage. What is missing is told before what
// is malformed, and both in the order in which the vendor lists the parameters.
func parseImport(p params, region *Region) (*importRequest, error) {
	disks, err := countDisks(p)
	if err != nil {
		return nil, err
	}
	r := &importRequest{
		name:        p["ImageName"],
		clientToken: p["ClientToken"],
		role:        p["RoleName"],
		details:     details{Description: p["Description"], ResourceGroupID: p["ResourceGroupId"]},
	}
	switch {
	case r.name != "" && !validName(r.name):
		return nil, errName.hint("A name has 2 to 128 letters, digits, '.', '_', ':' and '-', the first of them a letter, and does not begin with aliyun or acs:.")
	case !validDescription(r.Description):
		return nil, errDescription.hint("A description has up to 256 characters and does not begin with http:// or https://.")
	}
	if err := r.parseSystem(p); err != nil {
		return nil, err
	}
	for i := range disks {
		d, err := parseDisk(p, i, region)
		if err != nil {
			return nil, err
		}
		r.Disks = append(r.Disks, d)
	}
	if !validToken(r.clientToken) {
		return nil, errToken.hint("A client token has up to 64 ASCII characters.")
	}
	return r, r.parseOptions(p)
}

// parseSystem reads what is said of the operating system.
func (r *importRequest) parseSystem(p params) (err error) {
	if r.Architecture, err = p.choice("Architecture", errArchitecture, archX86, "i386", archARM); err != nil {
		return err
	}
	if r.osType, err = p.choice("OSType", errOSType, "linux", "windows"); err != nil {
		return err
	}
	r.Platform, err = p.choice("Platform", errPlatform, platforms...)
	return err
}

// parseOptions reads what comes after the disks and the client token.
func (r *importRequest) parseOptions(p params) (err error) {
	if r.BootMode, err = p.choice("BootMode", errBootMode, bootBIOS, bootUEFI); err != nil {
		return err
	}
	if r.Architecture == archARM {
		if p["BootMode"] != "" && r.BootMode != bootUEFI {
			return errBootModeArch.hint("Images for %s boot with %s.", archARM, bootUEFI)
		}
		r.BootMode = bootUEFI
	}
	if r.LicenseType, err = p.choice("LicenseType", errLicenseType, "Auto", "Aliyun", "BYOL"); err != nil {
		return err
	}
	if _, err = p.choice("DetectionStrategy", errDetection, "Standard"); err != nil {
		return err
	}
	if r.Tags, err = parseTags(p); err != nil {
		return err
	}
	if r.NvmeSupport, err = p.choice("Features.NvmeSupport", errNvmeSupport, "unsupported", "supported"); err != nil {
		return err
	}
	if r.ImdsSupport, err = p.choice("Features.ImdsSupport", errImdsSupport, "v1", "v2"); err != nil {
		return err
	}
	if p["StorageLocationArn"] != "" {
		return errCloudBox
	}
	var ok bool
	if r.dryRun, ok = p.flag("DryRun"); !ok { // nobody shall import who meant to try
		return errParameter.because("DryRun can be true or false.")
	}
	return nil
}

// notCompared are parameters by which two requests may differ that ask for the same: those
// of all actions, of which some differ each time, and those of the signature.
var notCompared = []string{
	"Action", "Version", "Format", "AccessKeyId", "SecurityToken", "Timestamp", "ClientToken",
	"OwnerId", "OwnerAccount", "ResourceOwnerId", "ResourceOwnerAccount",
}

// fingerprint is a digest of what a request asks for, as it was sent.
func (p params) fingerprint() string {
	digest := sha256.New()
	for _, name := range slices.Sorted(maps.Keys(p)) {
		value := p[name]
		if value == "" || strings.HasPrefix(name, "Signature") || slices.Contains(notCompared, name) {
			continue
		}
		fmt.Fprintf(digest, "%d:%s%d:%s", len(name), name, len(value), value)
	}
	return hex.EncodeToString(digest.Sum(nil))
}
