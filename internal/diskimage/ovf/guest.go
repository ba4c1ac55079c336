package ovf

// guest is how a descriptor speaks of an operating system, and the devices that it starts with.
type guest struct {
	// ID is the number in CIM_OperatingSystem.OSType of DMTF's CIM schema, which OVF refers
	// to. There is no 112 in it; VirtualBox, which counts on without the gap, takes what is
	// behind for something else.
	ID int
	// Type is VMware's name, of vim.vm.GuestOsDescriptor.GuestOsIdentifier. VMware's products
	// go by it, and others by ID.
	Type string
	// Controller and Adapter are resource subtypes of VMware.
	Controller, Adapter string
}

// Controllers and network adapters. What matters is that a system has a driver before
// anything could be installed, and in which it differs from others:
//
//   - Windows has one for LSI Logic SAS since Server 2008, and for Intel's adapters; it has none
//     for the paravirtual devices, and no longer one for the parallel LSI Logic.
//   - Linux has had those for the paravirtual devices since 2.6.33, which is older than any of
//     the systems here, and distributions of today begin to leave out the old ones.
//   - All others have those that VMware has had for longest.
const (
	lsiParallel = "lsilogic"
	lsiSAS      = "lsilogicsas"
	paravirtual = "VirtualSCSI"

	e1000   = "E1000"
	e1000e  = "E1000e" // Windows has a driver since Server 2012
	vmxnet3 = "VmxNet3"
)

// guests are the os_type words of the REST API. The version of the virtual hardware, vmx-14, is
// the first one that knows all of these types: ESXi 6.7. Its type for Windows Server 2016 is
// that for later ones, too, which have no number of their own either.
var guests = map[string]guest{
	"win2008R2SE":         {103, "windows7Server64Guest", lsiSAS, e1000},
	"win2008R2EE":         {103, "windows7Server64Guest", lsiSAS, e1000},
	"win2012SE":           {113, "windows8Server64Guest", lsiSAS, e1000e},
	"win2012R2SE":         {116, "windows8Server64Guest", lsiSAS, e1000e},
	"win2016SE_en":        {117, "windows9Server64Guest", lsiSAS, e1000e},
	"win2016SE_ja":        {117, "windows9Server64Guest", lsiSAS, e1000e},
	"win2016SE_SQL2016SE": {117, "windows9Server64Guest", lsiSAS, e1000e},
	"win2019SE":           {117, "windows9Server64Guest", lsiSAS, e1000e},
	"win2019SE_SQL2019SE": {117, "windows9Server64Guest", lsiSAS, e1000e},
	"rhel6":               {80, "rhel6_64Guest", paravirtual, vmxnet3},
	"rhel7":               {80, "rhel7_64Guest", paravirtual, vmxnet3},
	"rhel8":               {80, "rhel8_64Guest", paravirtual, vmxnet3},
	"centos":              {107, "centos64Guest", paravirtual, vmxnet3},
	"rocky":               {101, "other4xLinux64Guest", paravirtual, vmxnet3},
	"ubuntu":              {94, "ubuntu64Guest", paravirtual, vmxnet3},
	"linux":               {101, "otherLinux64Guest", paravirtual, vmxnet3}, // OpenStack's own word
}

func guestOf(osType string) guest {
	if g, ok := guests[osType]; ok {
		return g
	}
	return guest{102, "otherGuest64", lsiParallel, e1000}
}
