//go:build !race

package fjcloud_test

const raceEnabled = false
