package ram

// The system policies that matter to importing, by name. Of what the cloud's own
// say, the parts on services that are not here are left out.
var system = map[string]*Policy{
	"AdministratorAccess":            allowing("*"),
	"AliyunECSFullAccess":            allowing("ecs:*"),
	"AliyunECSReadOnlyAccess":        allowing("ecs:Describe*", "ecs:List*"),
	"AliyunECSImageImportRolePolicy": allowing("oss:GetObject", "oss:GetBucketLocation"),
}

// System returns the system policy of that exact name.
func System(name string) (*Policy, bool) {
	p, ok := system[name]
	return p, ok
}

// allowing makes a policy that allows actions with any resource.
func allowing(actions ...string) *Policy {
	s := statement{resources: patterns[resourcePattern]{list: []resourcePattern{nil}}}
	for _, a := range actions {
		p, err := newAction(a)
		if err != nil {
			panic("ram: " + a + " " + err.Error())
		}
		s.actions.list = append(s.actions.list, p)
	}
	return &Policy{statements: []statement{s}}
}
