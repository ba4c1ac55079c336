package aliyun

import "strings"

// platforms are what Platform can be, the default first.
var platforms = []string{
	"Others Linux", "Customized Linux",
	"CentOS", "CentOS Stream", "RedHat", "AlmaLinux", "Rocky Linux", "Fedora", "Fedora CoreOS", "CoreOS",
	"Ubuntu", "Debian", "SUSE", "OpenSUSE", "Gentoo", "FreeBSD",
	"Aliyun", "Anolis", "Kylin", "UOS",
	"Windows Server 2003", "Windows Server 2008", "Windows Server 2012", "Windows Server 2016",
	"Windows Server 2019", "Windows Server 2022", "Windows 7", "Other Windows",
}

// distros has Glance's os_distro of platforms. Nova knows no other values, so that most
// platforms have none.
var distros = map[string]string{
	"CentOS":        "centos",
	"CentOS Stream": "centos",
	"RedHat":        "rhel",
	"Rocky Linux":   "rocky",
	"Fedora":        "fedora",
	"Ubuntu":        "ubuntu",
	"Debian":        "debian",
	"OpenSUSE":      "opensuse",
	"Gentoo":        "gentoo",
	"FreeBSD":       "freebsd",
}

// distroOf returns the os_distro of a platform, or "".
func distroOf(platform string) string {
	if strings.Contains(platform, "Windows") {
		return "windows"
	}
	return distros[platform]
}
