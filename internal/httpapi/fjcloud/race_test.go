//go:build race

package fjcloud_test

// raceEnabled: the detector takes several times the memory and the time.
const raceEnabled = true
