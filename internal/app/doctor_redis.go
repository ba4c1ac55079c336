package app

import (
	"bufio"
	"cmp"
	"context"
	"errors"
	"fmt"
	"strconv"
	"strings"
	"sync"
	"time"

	"github.com/redis/go-redis/v9"

	"vmimport/internal/config"
	"vmimport/internal/fault"
	"vmimport/tasks"
	"vmimport/tasks/queue"
	"vmimport/tasks/redisstore"
)

const (
	// leastRedis is the oldest version that all of this is tested with.
	leastRedis = 7
	// maxMemoryUse is the part of Redis's memory above which it is time for more: when it is
	// full, nothing is accepted any more.
	maxMemoryUse = 0.8
	// maxWait is how long an import may wait while slots are free.
	maxWait = 10 * time.Minute
	// outlookLife is how old the words of a leading dispatcher may be.
	outlookLife = 30 * time.Second
)

func (d *diagnosis) redis(rc config.Redis) {
	const remedy = "Start Redis, or correct redis.url and redis.mode."
	rdb, err := openRedis(rc)
	if err != nil {
		d.look("redis", remedy, func(context.Context) (string, error) { return "", err })
		return
	}
	defer rdb.Close()
	if !d.look("redis", remedy, func(ctx context.Context) (string, error) { return "", reach(ctx, rdb) }) {
		return
	}
	store := redisstore.New(rdb, redisstore.Options{})
	d.look("redis version", fmt.Sprintf("Run Redis %d or newer.", leastRedis),
		func(ctx context.Context) (string, error) { return redisVersion(ctx, rdb) })
	d.look("redis durability", "Set Redis so. Only with redis.require_durable false does the service run without, and may then lose imports.",
		func(ctx context.Context) (string, error) { return durability(ctx, store, rc.RequireDurable) })
	d.look("redis memory", "Give Redis more memory, or shorten records.retention: once its memory is full, it takes no imports.",
		func(ctx context.Context) (string, error) { return redisMemory(ctx, rdb) })
	if rc.Replicas > 0 {
		d.look("redis replicas", "Start the replicas, or lower redis.replicas: without them no import is accepted.",
			func(ctx context.Context) (string, error) { return redisReplicas(ctx, rdb, rc.Replicas) })
	}
	d.look("clock", "Synchronise the clocks of this machine and of Redis's.",
		func(ctx context.Context) (string, error) { return compareClocks(ctx, rdb) })
	d.queue(store, queue.New(rdb))
}

// errLogin is Redis's refusal to know the service.
var errLogin = fault.New(fault.Denied, "redis_login", "Redis does not accept user and password.").
	Try("Correct them in redis.url, where @ is %40, / is %2F and so on.")

func reach(ctx context.Context, rdb redis.UniversalClient) error {
	err := rdb.Ping(ctx).Err()
	if redis.HasErrorPrefix(err, "NOAUTH") || redis.HasErrorPrefix(err, "WRONGPASS") || redis.HasErrorPrefix(err, "NOPERM") {
		return errLogin.Because(err)
	}
	return err
}

// eachMaster calls do for the server that rdb leads to, or for each master of a Cluster, one
// after another.
func eachMaster(ctx context.Context, rdb redis.UniversalClient, do func(*redis.Client) error) error {
	switch c := rdb.(type) {
	case *redis.ClusterClient:
		var mu sync.Mutex
		return c.ForEachMaster(ctx, func(_ context.Context, master *redis.Client) error {
			mu.Lock()
			defer mu.Unlock()
			return do(master)
		})
	case *redis.Client:
		return do(c)
	}
	return fmt.Errorf("%T is no client of Redis", rdb)
}

// infoOf returns a section of INFO. Of servers that do not have it, as of some that are only
// like Redis, it is empty.
func infoOf(ctx context.Context, c *redis.Client, section string) (map[string]string, error) {
	text, err := c.Info(ctx, section).Result()
	if _, refused := errors.AsType[redis.Error](err); refused {
		return nil, nil
	}
	if err != nil {
		return nil, err
	}
	info := map[string]string{}
	for lines := bufio.NewScanner(strings.NewReader(text)); lines.Scan(); {
		if name, value, ok := strings.Cut(lines.Text(), ":"); ok {
			info[name] = value
		}
	}
	return info, nil
}

// untold is the finding about what a server keeps to itself.
const untold = "Redis does not tell"

func redisVersion(ctx context.Context, rdb redis.UniversalClient) (message string, err error) {
	err = eachMaster(ctx, rdb, func(c *redis.Client) error {
		info, err := infoOf(ctx, c, "server")
		version := info["redis_version"]
		major, _, _ := strings.Cut(version, ".")
		switch n, bad := strconv.Atoi(major); {
		case err != nil:
			return err
		case bad != nil:
			message = untold
		case n < leastRedis:
			return fmt.Errorf("it is version %s", version)
		case message == "":
			message = version
		}
		return nil
	})
	return message, err
}

func redisMemory(ctx context.Context, rdb redis.UniversalClient) (message string, err error) {
	worst := 0.0
	message = untold
	err = eachMaster(ctx, rdb, func(c *redis.Client) error {
		info, err := infoOf(ctx, c, "memory")
		if err != nil {
			return err
		}
		bytes := func(name string) int64 { n, _ := strconv.ParseInt(info[name], 10, 64); return n }
		used, limit := bytes("used_memory"), cmp.Or(bytes("maxmemory"), bytes("total_system_memory"))
		if limit == 0 {
			return nil
		}
		if part := float64(used) / float64(limit); part >= worst {
			worst = part
			message = fmt.Sprintf("%s of %s used", byteCount(used), byteCount(limit))
		}
		return nil
	})
	if err == nil && worst > maxMemoryUse {
		return "", errors.New(message)
	}
	return message, err
}

func redisReplicas(ctx context.Context, rdb redis.UniversalClient, wanted int) (message string, err error) {
	message = untold
	err = eachMaster(ctx, rdb, func(c *redis.Client) error {
		info, err := infoOf(ctx, c, "replication")
		if err != nil || info == nil {
			return err
		}
		online := 0
		for name, value := range info {
			if strings.HasPrefix(name, "slave") && strings.Contains(value, "state=online") {
				online++
			}
		}
		if online < wanted {
			return fmt.Errorf("%d are connected, and redis.replicas is %d", online, wanted)
		}
		message = fmt.Sprintf("%d connected", online)
		return nil
	})
	return message, err
}

// durability looks whether Redis would keep what it accepts. Where that is not
// required, it says so and is content.
func durability(ctx context.Context, store *redisstore.Store, required bool) (string, error) {
	problems, err := store.Durability(ctx)
	if len(problems) > 0 {
		err = errors.New(strings.Join(problems, "; "))
	}
	if err != nil && !required {
		return "not required (" + err.Error() + ")", nil
	}
	return "", err
}

func compareClocks(ctx context.Context, rdb redis.UniversalClient) (message string, err error) {
	var worst time.Duration
	err = eachMaster(ctx, rdb, func(c *redis.Client) error {
		before := time.Now()
		there, err := c.Time(ctx).Result()
		if err != nil {
			return err
		}
		skew, sure := skewOf(there, before, time.Now())
		if sure > maxSkew {
			return fmt.Errorf("this machine's clock and that of Redis differ by %s", skew.Round(time.Millisecond))
		}
		worst = max(worst, skew)
		return nil
	})
	return "differs by " + worst.Round(time.Millisecond).String(), err
}

// queue looks whether what waits will be started.
func (d *diagnosis) queue(store *redisstore.Store, q *queue.Queue) {
	d.look("queue", "Look into the logs of the workers.", func(ctx context.Context) (string, error) {
		now, err := store.Now(ctx)
		if err != nil {
			return "", err
		}
		load, _, err := survey(ctx, store, now)
		if err != nil {
			return "", err
		}
		slots, err := q.Slots()
		if err != nil {
			return "", err
		}
		outlook, err := store.Outlook(ctx)
		if err != nil {
			return "", err
		}
		return queueHealth(load, slots, outlook, now)
	})
}

// What keeps a queue from moving.
var (
	errNoWorker = fault.New(fault.Unavailable, "no_worker", "No worker runs.").Try("Start one that reads the same configuration.")
	errNoLeader = fault.New(fault.Unavailable, "no_leader", "Workers run, but none leads, so that nothing is started.").
			Try("Look into their logs: each of them tries to lead.")
	errIdle = fault.New(fault.Unavailable, "queue_idle", "Imports wait though workers have nothing to do.").
		Try("Look into the logs of the workers.")
)

// queueHealth judges how things stand. That nothing runs yet is no fault of the configuration.
func queueHealth(load tasks.Load, slots int, o tasks.Outlook, now time.Time) (string, error) {
	waited := since(load.Oldest, now).Round(time.Second)
	switch {
	case slots == 0 && load.Open == 0:
		return "empty; no worker runs", nil
	case slots == 0:
		return "", errNoWorker.Saw("%d are unfinished", load.Open)
	case since(o.At, now) > outlookLife || o.At.IsZero():
		return "", errNoLeader
	case waited > maxWait && load.Running < slots && o.Contenders > 0:
		return "", errIdle.Saw("the oldest has been waiting for %s, and %d of %d slots are in use", waited, load.Running, slots)
	case load.Due == 0:
		return fmt.Sprintf("none waits; %d of %d slots in use", load.Running, slots), nil
	}
	return fmt.Sprintf("%d wait, the oldest for %s; %d of %d slots in use", load.Due, waited, load.Running, slots), nil
}
