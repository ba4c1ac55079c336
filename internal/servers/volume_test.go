package servers_test

import (
	"testing"

	"vmimport/internal/servers"
	"vmimport/internal/servers/serverstest"
)

func TestBootVolume(t *testing.T) {
	t.Parallel()
	const data, other = "dddddddd-2222-3333-4444-555555555555", "eeeeeeee-2222-3333-4444-555555555555"
	for name, tt := range map[string]struct {
		devices  []string // of data and volume
		bootable []bool
		named    string
		want     string // "": unclear
	}{
		"by both":                     {[]string{"/dev/vdb", "/dev/vda"}, []bool{false, true}, "", volume},
		"both bootable":               {[]string{"/dev/vdb", "/dev/vda"}, []bool{true, true}, "", volume},
		"sda":                         {[]string{"/dev/sdb", "/dev/sda"}, []bool{true, true}, "", volume},
		"no devices, one bootable":    {nil, []bool{false, true}, "", volume},
		"no devices, both bootable":   {nil, []bool{true, true}, "", ""},
		"none bootable":               {[]string{"/dev/vdb", "/dev/vda"}, []bool{false, false}, "", ""},
		"two first disks":             {[]string{"/dev/sda", "/dev/vda"}, []bool{true, true}, "", ""},
		"bootable, but not the first": {[]string{"/dev/vda", "/dev/vdb"}, []bool{false, true}, "", ""},
		"named":                       {nil, []bool{true, true}, data, data},
		"named, of another server":    {nil, []bool{true, true}, other, ""},
	} {
		t.Run(name, func(t *testing.T) {
			inTime(t, func(b *bench) {
				b.AddServer(serverstest.Server{ID: server, Name: "web01", Status: "SHUTOFF", Volumes: []string{data, volume}, Devices: tt.devices})
				b.AddVolume(serverstest.Volume{ID: data, Name: "data", Bootable: tt.bootable[0]})
				b.AddVolume(serverstest.Volume{ID: volume, Name: "root", Bootable: tt.bootable[1]})
				_, err := b.c.Image(b.ctx, server, servers.ImageOptions{Volume: tt.named}, b.report)
				if tt.want == "" {
					b.wants(err, servers.ErrBootVolume, data, volume, "--volume")
					b.wantCalls(upload, 0)
					return
				}
				b.wants(err, nil)
				b.wantCalls("POST /volume/.*/"+tt.want+"/action", 1)
			})
		})
	}
}

func TestVolumeIsGone(t *testing.T) {
	t.Parallel()
	inTime(t, func(b *bench) {
		b.AddServer(serverstest.Server{ID: server, Name: "a", Status: "SHUTOFF", Volumes: []string{"v404"}})
		_, err := b.c.Image(b.ctx, server, servers.ImageOptions{}, b.report)
		b.wants(err, servers.ErrRefused, "404")
	})
}
