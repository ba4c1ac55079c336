package storage_test

import (
	"strings"
	"testing"

	"vmimport/storage"
)

func TestLocationValid(t *testing.T) {
	t.Parallel()
	good := storage.Location{API: "swift", Project: "p1", Container: "images", Name: "disk.raw"}
	for name, test := range map[string]struct {
		change func(*storage.Location)
		want   bool
	}{
		"plain":              {func(*storage.Location) {}, true},
		"bucket":             {func(l *storage.Location) { l.API = "s3" }, true},
		"other API":          {func(l *storage.Location) { l.API = "http" }, false},
		"no project":         {func(l *storage.Location) { l.Project = "" }, true},
		"project path":       {func(l *storage.Location) { l.Project = "p1/p2" }, false},
		"project above":      {func(l *storage.Location) { l.Project = ".." }, false},
		"no container":       {func(l *storage.Location) { l.Container = "" }, false},
		"container path":     {func(l *storage.Location) { l.Container = "a/b" }, false},
		"long container":     {func(l *storage.Location) { l.Container = strings.Repeat("c", 257) }, false},
		"no name":            {func(l *storage.Location) { l.Name = "" }, false},
		"slashes":            {func(l *storage.Location) { l.Name = "//" }, false},
		"empty segment":      {func(l *storage.Location) { l.Name = "a//b" }, true},
		"longest":            {func(l *storage.Location) { l.Name = strings.Repeat("n", storage.MaxNameBytes) }, true},
		"too long":           {func(l *storage.Location) { l.Name = strings.Repeat("n", storage.MaxNameBytes+1) }, false},
		"dots":               {func(l *storage.Location) { l.Name = "..a/b../..." }, true},
		"dot segment":        {func(l *storage.Location) { l.Name = "a/./b" }, false},
		"dotdot segment":     {func(l *storage.Location) { l.Name = "a/.." }, false},
		"encoded":            {func(l *storage.Location) { l.Name = "%2e%2e%2f?#+ " }, true},
		"any script":         {func(l *storage.Location) { l.Name = "日本語 ü \u202e😀" }, true},
		"NUL":                {func(l *storage.Location) { l.Name = "a\x00" }, false},
		"line end":           {func(l *storage.Location) { l.Name = "a\nb" }, false},
		"C1 control":         {func(l *storage.Location) { l.Name = "a\u0085" }, false},
		"not UTF-8":          {func(l *storage.Location) { l.Name = "a\xff" }, false},
		"container with DEL": {func(l *storage.Location) { l.Container = "a\x7f" }, false},
	} {
		loc := good
		test.change(&loc)
		if got := loc.Valid(); got != test.want {
			t.Errorf("%s: %v, want %v", name, got, test.want)
		}
	}
}
