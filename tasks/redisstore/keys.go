package redisstore

import (
	"crypto/sha256"
	"encoding/hex"
	"fmt"
	"net/url"
	"strings"

	"vmimport/tasks"
)

// Keys that belong to no tenant.
const (
	// tenantsKey (ZSET) holds the tenants that may need the dispatcher, scored
	// by when: the time of the last announcement (Create, Cancel, DeleteImage), in Unix
	// milliseconds, until nothing is unfinished, then the time when the next
	// record is purged.
	tenantsKey = "vmimport:tenants"

	// leaderKey (STRING, expiring) holds the name of the leading dispatcher.
	leaderKey = "vmimport:leader"

	// outlookKey (STRING) holds the last tasks.Outlook, as JSON.
	outlookKey = "vmimport:outlook"

	// Channels for hints. The payload of cancelChannel is an import id, that of
	// changesChannel the key of the journal that has grown.
	workChannel    = "vmimport:work"
	cancelChannel  = "vmimport:cancel"
	changesChannel = "vmimport:changes"
)

// tenantKeys makes the key names of one tenant. They share a hash tag, so that
// a script may touch several of them on a Redis Cluster too.
type tenantKeys struct{ prefix string }

func keysOf(t tasks.Tenant) tenantKeys {
	return tenantKeys{"vmimport:{" + escape(string(t)) + "}:"}
}

// record (HASH) is one import; its fields are listed in codec.go.
func (k tenantKeys) record(id tasks.ID) string { return k.prefix + "import:" + escape(string(id)) }

// attempts (LIST) holds an import's ended attempts, as JSON, oldest first.
func (k tenantKeys) attempts(id tasks.ID) string {
	return k.prefix + "attempts:" + escape(string(id))
}

// api names what a task came in through, in keys and records: its dialect, and for all
// kinds but imports the kind.
func api(dialect string, kind tasks.Kind) string {
	if dialect == "" || kind == "" || kind == tasks.KindImport {
		return dialect
	}
	return dialect + "/" + string(kind)
}

// list (ZSET) orders the ids of a region and api by the number that seq gave them.
func (k tenantKeys) list(region, api string) string {
	return k.prefix + "list:" + escape(region) + ":" + escape(api)
}

// listOf (ZSET) holds those of list that are of a project.
func (k tenantKeys) listOf(region, api, project string) string {
	return k.list(region, api) + ":of:" + escape(project)
}

// Lists (ZSET) of the imports with Spec.ListsImage. Scripts make their names out of the
// record's own fields, in the same way.
func phaseList(list string, phase tasks.Phase) string { return list + ":" + string(phase) }

// imagesList holds those whose image was not deleted; each of its phases has a list too.
func imagesList(list string) string { return list + ":images" }

// seq (STRING) numbers the tenant's imports in the order of their creation.
func (k tenantKeys) seq() string { return k.prefix + "seq" }

// An unfinished import is in exactly one of these five (ZSET). The two for
// clean-ups hold imports that were canceled, or whose image was deleted, or of which
// something is kept after they failed, and that no worker has.
func (k tenantKeys) waiting() string           { return k.prefix + "waiting" }             // by when it is due
func (k tenantKeys) dispatched() string        { return k.prefix + "dispatched" }          // by when it was given to the queue
func (k tenantKeys) cleanups() string          { return k.prefix + "cleanups" }            // as waiting
func (k tenantKeys) dispatchedCleanup() string { return k.prefix + "dispatched-cleanups" } // as dispatched
func (k tenantKeys) running() string           { return k.prefix + "running" }             // by when its claim runs out

// ended (ZSET) holds finished imports by the time of their purge.
func (k tenantKeys) ended() string { return k.prefix + "ended" }

// kept (SET) holds failed imports of which something is kept. They have one of the five
// places too.
func (k tenantKeys) kept() string { return k.prefix + "kept" }

// journal (STREAM) has every change of an import's state; journal.go says how.
func (k tenantKeys) journal() string { return k.prefix + "journal" }

// journalTenant returns the tenant whose journal has that key.
func journalTenant(key string) (tasks.Tenant, bool) {
	name, before := strings.CutPrefix(key, "vmimport:{")
	name, after := strings.CutSuffix(name, "}:journal")
	tenant, err := url.PathUnescape(name)
	return tasks.Tenant(tenant), before && after && err == nil
}

// usage (HASH) counts what the quotas bound, in <region>/<dialect>/images and
// <region>/<dialect>/disks.
func (k tenantKeys) usage() string { return k.prefix + "usage" }

// images (HASH) maps region/image id to the unfinished import that wants it, and
// /region/project/container/image id to the unfinished export that writes it there.
func (k tenantKeys) images() string { return k.prefix + "images" }

// names (HASH) maps region/name to the import that reserved the name, and
// /region/project/container/name to the unfinished export that writes objects of it.
func (k tenantKeys) names() string { return k.prefix + "names" }

// reserved returns the fields of images and names that a task takes. name is empty if it
// takes none. A region has no slash in it.
func reserved(spec *tasks.Spec) (image, name string) {
	if e := spec.Export; e != nil {
		at := "/" + spec.Region + "/" + spec.Owner.Project + "/" + e.Container + "/"
		return at + spec.ImageID, at + spec.Name
	}
	if spec.UniqueName {
		name = spec.Region + "/" + spec.Name
	}
	return spec.Region + "/" + spec.ImageID, name
}

// token (HASH, expiring) holds the import and fingerprint of a client token.
func (k tenantKeys) token(region, token string) string {
	sum := sha256.Sum256([]byte(region + "\x00" + token))
	return k.prefix + "token:" + hex.EncodeToString(sum[:])
}

// escape makes a part of a key out of foreign text: what could end a hash tag
// or a part becomes %XX.
func escape(s string) string {
	var b strings.Builder
	for _, c := range []byte(s) {
		switch {
		case 'a' <= c && c <= 'z', 'A' <= c && c <= 'Z', '0' <= c && c <= '9', c == '-', c == '_', c == '.':
			b.WriteByte(c)
		default:
			fmt.Fprintf(&b, "%%%02X", c)
		}
	}
	return b.String()
}
