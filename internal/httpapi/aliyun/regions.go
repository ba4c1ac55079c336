package aliyun

import "cmp"

type regionsAnswer struct {
	base
	Regions struct{ Region []regionEntry }
}

type regionEntry struct{ RegionId, RegionEndpoint, LocalName, Status string }

// describeRegions answers DescribeRegions: those that the account may use, in the order
// of the configuration. Regions without imports are among them, as a region has more
// than imports.
func (cl *call) describeRegions() (any, error) {
	language, ok := oneOf(cl.params["AcceptLanguage"], "zh-CN", "en-US", "ja")
	if !ok {
		return nil, errLanguage
	}
	if _, ok := oneOf(cl.params["ResourceType"], "", "instance", "disk", "reservedinstance", "scu"); !ok {
		return nil, errResourceType
	}
	answer := regionsAnswer{base: cl.base()}
	answer.Regions.Region = []regionEntry{}
	for i := range cl.d.opts.Regions {
		r := &cl.d.opts.Regions[i]
		if !cl.caller.Account.Enabled(r.ID) {
			continue
		}
		answer.Regions.Region = append(answer.Regions.Region, regionEntry{
			RegionId:       r.ID,
			RegionEndpoint: cmp.Or(r.Endpoint, cl.http.Host),
			LocalName:      cmp.Or(r.LocalNames[language], r.ID),
			Status:         "available",
		})
	}
	return answer, nil
}
