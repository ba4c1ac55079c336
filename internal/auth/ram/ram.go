// Package ram says who holds an access key of an Alibaba Cloud account, and
// what the holder may do: accounts, users, roles, and the policies of Resource
// Access Management (RAM).
//
// What no policy permits is denied, and a denial outweighs any permission. A
// statement that cannot be evaluated never permits and always denies; see
// ParsePolicy for what that is.
package ram

import (
	"slices"
	"time"

	"vmimport/internal/secret"
)

// Directory knows access keys. Implementations are safe for concurrent use;
// what they return is never changed, neither by them nor by who asked.
type Directory interface {
	// Credential returns the access key of an id, and whether there is one. A
	// disabled or expired credential is returned like any other.
	Credential(keyID string) (*Credential, bool)
}

// Credential is an access key. The zero SecurityToken is that of a permanent
// key; a temporary one has a token that each request must show, and an end.
type Credential struct {
	KeyID    string
	Secret   secret.Text
	Disabled bool

	SecurityToken secret.Text
	Expires       time.Time // zero: never

	Caller Caller
}

// Caller is who holds a credential: a user of an account, a session of a role,
// or, with neither User nor Role, the account itself.
type Caller struct {
	Account *Account
	User    string
	Role    string // whose session this is
	// Policies say what a user or role may do. The account itself may do all.
	Policies []*Policy
	// Session narrows that: what it does not permit, too, is denied. Empty: it
	// narrows nothing.
	Session []*Policy
}

// May reports whether the caller may do an action, such as "ecs:ImportImage",
// with a resource, such as "acs:ecs:cn-hangzhou:1234567890123456:image/*".
// It asks no more than the caller's policies: whose the resource is, and
// whether it exists, is for others to find out.
func (c *Caller) May(action, resource string) bool {
	root := c.User == "" && c.Role == ""
	return (root || permitted(c.Policies, action, resource)) &&
		(len(c.Session) == 0 || permitted(c.Session, action, resource))
}

// ARN returns the caller's name: acs:ram::1234567890123456:user/ci,
// acs:ram::1234567890123456:role/reader or acs:ram::1234567890123456:root.
func (c *Caller) ARN() string {
	prefix := "acs:ram::" + c.Account.ID + ":"
	switch {
	case c.User != "":
		return prefix + "user/" + c.User
	case c.Role != "":
		return prefix + "role/" + c.Role
	}
	return prefix + "root"
}

// Account is a customer: what it owns, and how much it may have.
type Account struct {
	ID, Name string
	// Project owns the account's images and objects in the stores below.
	Project string
	// MayImport says that importing has been enabled for the account.
	MayImport bool
	// Regions are those enabled for the account. Empty: all.
	Regions []string
	// Images and Snapshots are how many of each the account may have in each
	// region. Zero: there is no bound.
	Images, Snapshots int

	ResourceGroups []string // ids
	Roles          []Role
	Buckets        []Bucket
}

// Role returns the account's role of that exact name.
func (a *Account) Role(name string) (*Role, bool) {
	i := slices.IndexFunc(a.Roles, func(r Role) bool { return r.Name == name })
	if i < 0 {
		return nil, false
	}
	return &a.Roles[i], true
}

// Bucket returns the bucket of that name, if it is the account's.
func (a *Account) Bucket(name string) (*Bucket, bool) {
	i := slices.IndexFunc(a.Buckets, func(b Bucket) bool { return b.Name == name })
	if i < 0 {
		return nil, false
	}
	return &a.Buckets[i], true
}

// HasResourceGroup reports whether the account has the resource group.
func (a *Account) HasResourceGroup(id string) bool { return slices.Contains(a.ResourceGroups, id) }

// Enabled reports whether the account may use the region.
func (a *Account) Enabled(region string) bool {
	return len(a.Regions) == 0 || slices.Contains(a.Regions, region)
}

// Bucket is a bucket as the account sees it, and where it really is.
type Bucket struct {
	Name, Region string
	// API, Project and Container are as in storage.Location.
	API, Project, Container string
}

// Role is what a service, or somebody with temporary credentials, may act as.
type Role struct {
	Name     string
	Trust    *Policy // who may assume it
	Policies []*Policy
}

// TrustedBy reports whether a service, such as "ecs.aliyuncs.com", may assume
// the role.
func (r *Role) TrustedBy(service string) bool {
	return r.Trust != nil && r.Trust.trusts(service)
}

// May reports whether somebody who acts as the role may do an action with a
// resource. See Caller.May.
func (r *Role) May(action, resource string) bool { return permitted(r.Policies, action, resource) }

// permitted reports whether one of the policies allows and none denies.
func permitted(policies []*Policy, action, resource string) bool {
	return decide(policies, request{action: action, resource: resource})
}
