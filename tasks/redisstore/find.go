package redisstore

import (
	"context"
	"errors"
	"slices"
	"strings"

	"github.com/redis/go-redis/v9"

	"vmimport/tasks"
)

// Find implements tasks.Records.
func (s *Store) Find(ctx context.Context, scope tasks.Scope, q tasks.Query) (found []*tasks.Task, total int, err error) {
	k := keysOf(scope.Tenant)
	list := k.list(scope.Region, api(scope.Dialect, scope.Kind))
	if q.Images {
		list = imagesList(list)
	}
	switch {
	case q.IDs != nil:
		return s.findAmong(ctx, k, scope, q)
	case q.Name != "" && keepsNames(q):
		id, err := s.rdb.HGet(ctx, k.names(), scope.Region+"/"+q.Name).Result()
		if err != nil && !errors.Is(err, redis.Nil) {
			return nil, 0, redisError("find name", err)
		}
		q.IDs = []tasks.ID{tasks.ID(id)}
		return s.findAmong(ctx, k, scope, q)
	case q.Match != nil || q.Name != "" || scope.Project != "":
		return s.scan(ctx, k, list, scope, q)
	}
	lists := []string{list}
	if len(q.Phases) > 0 {
		lists = lists[:0]
		for _, phase := range unique(q.Phases) {
			lists = append(lists, phaseList(list, phase))
		}
	}
	reply, err := s.run(ctx, pageCmd, lists, q.Start, q.Limit)
	if err != nil {
		return nil, 0, redisError("find imports", err)
	}
	ids := make([]string, len(reply)-1)
	for i := range ids {
		ids[i] = reply.word(i + 1)
	}
	found, err = s.readMany(ctx, k, ids)
	return found, int(reply.number(0)), err
}

// keepsNames reports whether all that q can select have their names reserved: what exists,
// or is being imported.
func keepsNames(q tasks.Query) bool {
	givenBack := func(p tasks.Phase) bool { return p == tasks.PhaseFailed || p == tasks.PhaseCanceled }
	return q.Images && len(q.Phases) > 0 && !slices.ContainsFunc(q.Phases, givenBack)
}

// selects reports whether q selects task, which is of the scope's tenant.
func selects(scope tasks.Scope, q tasks.Query, task *tasks.Task) bool {
	return within(scope, task) && task.ListsImage &&
		(!q.Images || task.DeletedAt.IsZero()) &&
		(q.Name == "" || task.Name == q.Name) &&
		(len(q.Phases) == 0 || slices.Contains(q.Phases, task.Phase())) &&
		(q.Match == nil || q.Match(task))
}

// findAmong looks at the records of q.IDs.
func (s *Store) findAmong(ctx context.Context, k tenantKeys, scope tasks.Scope, q tasks.Query) ([]*tasks.Task, int, error) {
	var ids []string
	for _, id := range unique(q.IDs) {
		if id != "" && len(id) <= maxID {
			ids = append(ids, string(id))
		}
	}
	imports, err := s.readMany(ctx, k, ids)
	if err != nil {
		return nil, 0, err
	}
	imports = slices.DeleteFunc(imports, func(task *tasks.Task) bool { return !selects(scope, q, task) })
	slices.SortFunc(imports, func(a, b *tasks.Task) int {
		if c := b.RequestedAt.Compare(a.RequestedAt); c != 0 {
			return c
		}
		return strings.Compare(string(a.ID), string(b.ID))
	})
	from := min(max(q.Start, 0), len(imports))
	to := min(from+max(q.Limit, 0), len(imports))
	return imports[from:to], len(imports), nil
}

// scanBatch is how many records are looked at in one round trip.
const scanBatch = 500

// scan looks at all records of a list, and keeps only the page in memory. It goes by
// score, so that what comes or goes meanwhile moves nothing.
func (s *Store) scan(ctx context.Context, k tenantKeys, list string, scope tasks.Scope, q tasks.Query) (found []*tasks.Task, total int, err error) {
	below := "+inf"
	for {
		batch, err := s.rdb.ZRevRangeByScoreWithScores(ctx, list, &redis.ZRangeBy{Min: "-inf", Max: below, Count: scanBatch}).Result()
		if err != nil {
			return nil, 0, redisError("find imports", err)
		}
		ids := make([]string, len(batch))
		for i, z := range batch {
			ids[i], _ = z.Member.(string)
			below = "(" + score(z.Score)
		}
		imports, err := s.readMany(ctx, k, ids)
		if err != nil {
			return nil, 0, err
		}
		for _, task := range imports {
			if !selects(scope, q, task) {
				continue
			}
			if total >= q.Start && len(found) < q.Limit {
				found = append(found, task)
			}
			total++
		}
		if len(batch) < scanBatch {
			return found, total, nil
		}
	}
}

// unique returns s without repetitions.
func unique[T ~string](s []T) []T {
	sorted := slices.Clone(s)
	slices.Sort(sorted)
	return slices.Compact(sorted)
}
