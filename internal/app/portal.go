package app

import (
	"net/http"
	"net/netip"

	"vmimport/internal/config"
	"vmimport/internal/httpapi"
	"vmimport/internal/httpapi/fjcloud"
	"vmimport/internal/httpapi/portal"
)

// newPortal returns the web page of a region, a client of its API. The server that it calls is not
// there yet.
func (a *API) newPortal(rc config.Region, d *fjcloud.Dialect, proxies []netip.Prefix) *portal.Portal {
	return portal.New(portal.Options{
		Region: rc.ID,
		API:    http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) { a.server.ServeHTTP(w, r) }),
		Offers: portalOffers(d.Offers()),
		Secure: httpapi.Encrypted(proxies),
	})
}

func portalOffers(o fjcloud.Offers) portal.Offers {
	offers := portal.Offers{
		LocationVersion: o.LocationVersion,
		S3Locations:     o.S3Locations,
		DiskExtensions:  o.ExportedExtensions,
		OSTypes:         o.OSTypes,
		CancelImports:   o.CancelImports,
		Exports:         len(o.ExportForms) > 0,
	}
	for _, h := range o.Hypervisors {
		offers.Hypervisors = append(offers.Hypervisors, portal.Hypervisor(h))
	}
	return offers
}
