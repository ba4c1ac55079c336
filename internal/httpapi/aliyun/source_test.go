package aliyun_test

import (
	"maps"
	"net/http"
	"strings"
	"testing"

	"vmimport/internal/auth/ram"
	"vmimport/internal/fault"
	"vmimport/internal/httpapi/aliyun"
)

// What is wrong with the place that the image is in.
func TestImportSource(t *testing.T) {
	t.Parallel()
	const noRole = "NoSetRoletoECSServiceAcount"
	trust := func(service string) *ram.Policy {
		return policy(t, `{"Version": "1", "Statement": [{"Effect": "Allow", "Action": "sts:AssumeRole", "Principal": {"Service": ["`+service+`"]}}]}`)
	}
	may := func(statements string) []*ram.Policy {
		return []*ram.Policy{policy(t, `{"Version": "1", "Statement": [`+statements+`]}`)}
	}
	const allowAll = `{"Effect": "Allow", "Action": ["oss:GetObject", "oss:GetBucketLocation"], "Resource": "*"}`
	role := func(change func(*ram.Role)) func(*ram.Account) {
		return func(a *ram.Account) { change(&a.Roles[0]) }
	}
	denied := fault.New(fault.Denied, "object_not_readable", "The object cannot be read.")
	for what, test := range map[string]struct {
		change func(*ram.Account)
		pairs  []string
		found  *object
		status int
		code   string
	}{
		"no role":          {change: func(a *ram.Account) { a.Roles = nil }, status: 403, code: noRole},
		"role of any name": {change: role(func(r *ram.Role) { r.Name = "Importer" }), status: 403, code: noRole},
		"role that was asked for": {change: role(func(r *ram.Role) { r.Name = "Importer" }),
			pairs: []string{"RoleName", "Importer"}, status: 403, code: noRole},
		"another role asked for": {pairs: []string{"RoleName", "aliyunecsimageimportdefaultrole"}, status: 403, code: noRole},
		"role without trust":     {change: role(func(r *ram.Role) { r.Trust = nil }), status: 403, code: noRole},
		"role that trusts others": {change: role(func(r *ram.Role) { r.Trust = trust("fc.aliyuncs.com") }),
			status: 403, code: noRole},
		"role without rights": {change: role(func(r *ram.Role) { r.Policies = nil }), status: 403, code: noRole},
		"role that may not locate": {change: role(func(r *ram.Role) {
			r.Policies = may(`{"Effect": "Allow", "Action": "oss:GetObject", "Resource": "*"}`)
		}), status: 403, code: noRole},
		"role that may not read": {change: role(func(r *ram.Role) {
			r.Policies = may(`{"Effect": "Allow", "Action": "oss:GetBucketLocation", "Resource": "*"}`)
		}), status: 403, code: noRole},
		"role that is denied this object": {change: role(func(r *ram.Role) {
			r.Policies = may(allowAll + `, {"Effect": "Deny", "Action": "oss:*", "Resource": "acs:oss:*:*:images/web.raw"}`)
		}), status: 403, code: noRole},
		"role that is denied the second object": {change: role(func(r *ram.Role) {
			r.Policies = may(allowAll + `, {"Effect": "Deny", "Action": "oss:*", "Resource": "acs:oss:*:*:images/data.raw"}`)
		}), pairs: disks(2), status: 403, code: noRole},
		"role for this bucket alone": {change: role(func(r *ram.Role) {
			r.Policies = may(`{"Effect": "Allow", "Action": "oss:Get*", "Resource": ["acs:oss:*:` + alpha + `:images", "acs:oss:*:` + alpha + `:images/*"]}`)
		}), status: 200},
		"unknown bucket": {pairs: []string{"DiskDeviceMapping.1.OSSBucket", "nowhere"}, status: 400, code: "InvalidOSSBucket.NotFound"},
		"bucket of another account": {change: func(a *ram.Account) { a.Buckets = a.Buckets[1:] },
			status: 400, code: "InvalidOSSBucket.NotFound"},
		"bucket in another region": {pairs: []string{"DiskDeviceMapping.1.OSSBucket", "north"}, status: 400, code: "InvalidOSSBucket.NotFound"},
		"unknown object":           {pairs: []string{"DiskDeviceMapping.1.OSSObject", "missing.raw"}, status: 400, code: "InvalidOSSObject.NotFound"},
		"unknown second object": {pairs: append(disks(2), "DiskDeviceMapping.2.OSSObject", "missing.raw"),
			status: 400, code: "InvalidOSSObject.NotFound"},
		"empty object":      {found: &object{err: fault.New(fault.Invalid, "object_empty", "The object is empty.")}, status: 400, code: "InvalidOSSObject.Size"},
		"unreadable object": {found: &object{err: denied}, status: 403, code: "InvalidOSS.NotAuthorized"},
		"format not enabled, and none declared": {found: &object{bytes: 1, virtualBytes: 1 << 30, format: "vmdk"},
			status: 400, code: "InvalidFormat.Malformed"},
		"disk beyond the region's bound": {found: &object{bytes: 1, virtualBytes: 500<<30 + 1, format: "qcow2"}, status: 400, code: "InvalidImageSize"},
		"disk at the region's bound":     {found: &object{bytes: 1, virtualBytes: 500 << 30, format: "qcow2"}, status: 200},
		"disk of unknown size":           {found: &object{bytes: 1, format: "vhd"}, status: 200},
		"object store that is down": {found: &object{err: fault.New(fault.Unavailable, "object_store_unavailable", "The object store is down.")},
			status: 503, code: "ServiceUnavailable"},
	} {
		t.Run(what, func(t *testing.T) {
			t.Parallel()
			r := newRig(t)
			if test.change != nil {
				test.change(r.accounts[alphaKey.ID].Caller.Account)
			}
			if test.found != nil {
				r.objects.put("web.raw", *test.found)
			}
			a := r.call(t, "ImportImage", oneDisk(test.pairs...))
			wantCode(t, a, test.status, test.code)
			if strings.HasPrefix(test.code, "NoSetRole") && r.objects.looks != 0 {
				t.Error("the objects were looked at without the right to do it")
			}
		})
	}
}

// Nobody learns whether somebody else has a bucket.
func TestBucketsOfOthersAreUnknown(t *testing.T) {
	t.Parallel()
	r := newRig(t)
	b := r.accounts[betaKey.ID].Caller.Account
	b.Buckets = append(b.Buckets, ram.Bucket{Name: "theirs", Region: hangzhou, API: "s3", Project: b.Project, Container: "theirs"})
	theirs := r.call(t, "ImportImage", oneDisk("DiskDeviceMapping.1.OSSBucket", "theirs"))
	nobodys := r.call(t, "ImportImage", oneDisk("DiskDeviceMapping.1.OSSBucket", "nobodys"))
	elsewhere := r.call(t, "ImportImage", oneDisk("DiskDeviceMapping.1.OSSBucket", "north"))
	delete(nobodys.json, "RequestId")
	for _, a := range []reply{theirs, elsewhere} {
		delete(a.json, "RequestId")
		if a.status != http.StatusBadRequest || !maps.Equal(a.json, nobodys.json) || a.code() != "InvalidOSSBucket.NotFound" {
			t.Errorf("answered %d %v, want as for a bucket that nobody has: %v", a.status, a.json, nobodys.json)
		}
	}
	if r.objects.looks != 0 {
		t.Error("the objects were looked at")
	}
}

// A region may import other formats, and bound disks otherwise.
func TestRegionsOwnBounds(t *testing.T) {
	t.Parallel()
	r := newRig(t, func(o *aliyun.Options) {
		o.Regions[0].Formats = []string{"raw", "VMDK"}
		o.Regions[0].SystemDisk = aliyun.Sizes{Min: 1, Max: 2048}
	})
	r.objects.put("web.vmdk", object{bytes: 1 << 20, virtualBytes: 1 << 30, format: "vmdk"})
	p := oneDisk("DiskDeviceMapping.1.OSSObject", "web.vmdk")
	r.imported(t, p)
	r.imported(t, p.with("DiskDeviceMapping.1.Format", "vmdk", "DiskDeviceMapping.1.DiskImageSize", "1"))
	r.imported(t, p.with("DiskDeviceMapping.1.DiskImageSize", "2048"))
	wantCode(t, r.call(t, "ImportImage", p.with("DiskDeviceMapping.1.DiskImageSize", "2049")), 400, "InvalidImageSize")
	wantCode(t, r.call(t, "ImportImage", p.with("DiskDeviceMapping.1.Format", "QCOW2")), 400, "InvalidFormat.Malformed")
}
