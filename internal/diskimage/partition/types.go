package partition

// The types that tell how a disk boots.
const (
	typeEFI      = "C12A7328-F81F-11D2-BA4B-00A0C93EC93B"
	typeMBREFI   = "0xEF"
	typeBIOSBoot = "21686148-6449-6E6F-744E-656564454649"
)

// typeNames has the types that disks of virtual machines have. Those of an MBR were
// never given out by anybody: the names are what fdisk(8) calls them. The GUIDs are
// from the UEFI Specification 2.10, table 5.7, from Microsoft's
// PARTITION_INFORMATION_GPT, from the Discoverable Partitions Specification and
// from FreeBSD's gpart(8).
var typeNames = map[string]string{
	"0x01":     "FAT12",
	"0x04":     "FAT16",
	"0x05":     "extended",
	"0x06":     "FAT16",
	"0x07":     "NTFS or exFAT",
	"0x0B":     "FAT32",
	"0x0C":     "FAT32",
	"0x0E":     "FAT16",
	"0x0F":     "extended",
	"0x27":     "Windows recovery",
	"0x42":     "Windows dynamic disk",
	"0x82":     "Linux swap",
	"0x83":     "Linux",
	"0x85":     "extended",
	"0x8E":     "Linux LVM",
	"0xA5":     "FreeBSD",
	"0xA6":     "OpenBSD",
	"0xA9":     "NetBSD",
	"0xBF":     "Solaris",
	"0xEE":     "GPT protective",
	typeMBREFI: "EFI system",
	"0xFD":     "Linux RAID",

	typeEFI:                                "EFI system",
	typeBIOSBoot:                           "BIOS boot",
	"024DEE41-33E7-11D3-9D69-0008C781F39F": "MBR partition scheme",
	"E3C9E316-0B5C-4DB8-817D-F92DF00215AE": "Microsoft reserved",
	"EBD0A0A2-B9E5-4433-87C0-68B6B72699C7": "Microsoft basic data",
	"5808C8AA-7E8F-42E0-85D2-E1E90434CFB3": "Windows dynamic disk metadata",
	"AF9B60A0-1431-4F62-BC68-3311714A69AD": "Windows dynamic disk",
	"DE94BBA4-06D1-4D40-A16A-BFD50179D6AC": "Windows recovery",
	"0FC63DAF-8483-4772-8E79-3D69D8477DE4": "Linux",
	"4F68BCE3-E8CD-4DB1-96E7-FBCAF984B709": "Linux root (x86-64)",
	"B921B045-1DF0-41C3-AF44-4C6F280D3FAE": "Linux root (ARM 64)",
	"BC13C2FF-59E6-4262-A352-B275FD6F7172": "Linux extended boot",
	"933AC7E1-2EB4-4F13-B844-0E14E2AEF915": "Linux home",
	"0657FD6D-A4AB-43C4-84E5-0933C84B4F4F": "Linux swap",
	"E6D6D379-F507-44C2-A23C-238F2A3DF928": "Linux LVM",
	"A19D880F-05FC-4D3B-A006-743F0F84911E": "Linux RAID",
	"9E1A2D38-C612-4316-AA26-8B49521E5A8B": "PowerPC PReP boot",
	"83BD6B9D-7F41-11DC-BE0B-001560B84F0F": "FreeBSD boot",
	"516E7CB5-6ECF-11D6-8FF8-00022D09712B": "FreeBSD swap",
	"516E7CB6-6ECF-11D6-8FF8-00022D09712B": "FreeBSD UFS",
	"516E7CBA-6ECF-11D6-8FF8-00022D09712B": "FreeBSD ZFS",
}
