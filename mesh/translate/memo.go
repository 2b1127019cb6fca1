package translate

import "sync"

// memo remembers values by key for as long as they are asked for: what neither the newest snapshot nor the one before
// needed is dropped. The zero value is ready and safe for concurrent use.
type memo[K comparable, V any] struct {
	mu        sync.Mutex
	epoch     uint64
	cur, prev map[K]*cell[V]
}

type cell[V any] struct {
	once sync.Once
	v    V
	err  error
}

func (m *memo[K, V]) cell(epoch uint64, k K) *cell[V] {
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.cur == nil {
		m.cur = map[K]*cell[V]{}
	}
	if epoch > m.epoch {
		m.epoch, m.prev, m.cur = epoch, m.cur, make(map[K]*cell[V], len(m.cur))
	}
	c := m.cur[k]
	if c == nil {
		if c = m.prev[k]; c == nil {
			c = &cell[V]{}
		}
		m.cur[k] = c
	}
	return c
}

// get returns the value for k, made by make once however many ask at the same time.
func (m *memo[K, V]) get(epoch uint64, k K, make func() (V, error)) (V, error) {
	c := m.cell(epoch, k)
	c.once.Do(func() { c.v, c.err = make() })
	return c.v, c.err
}

// update replaces the value for k, the zero value at first, by what f makes of it.
func (m *memo[K, V]) update(epoch uint64, k K, f func(V) V) V {
	c := m.cell(epoch, k)
	m.mu.Lock()
	defer m.mu.Unlock()
	c.v = f(c.v)
	return c.v
}
