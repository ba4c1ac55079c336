// Package portaltest tests the portal in a real browser, on the whole service: what people do there,
// in both languages, with and without script, on a phone and by keyboard.
//
// Each page that a test comes to is looked at by axe-core for what would keep somebody out, and
// a test fails for a warning on the browser's console and for a request that leaves the service.
// With go test -artifacts the screenshots are kept.
package portaltest
