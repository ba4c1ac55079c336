package openstack

import "context"

// StartWebGlance starts a second Glance over the same data, whose images may also lie on web
// servers: a store that can only be read from the front, as most can. The owner of an image
// may give it such a location. StartWebGlance returns the Glance's URL, which is in no
// catalogue. There is one for a cloud.
func (c *Cloud) StartWebGlance(ctx context.Context) (string, error) {
	return startFurther(ctx, func(port int) *Server {
		return c.wsgi("glance-web", "glance/glance_wsgi.py", port, "/healthcheck", "OS_GLANCE_CONFIG_DIR="+c.path("glance"), c.pythonPath(),
			// Which come before the files.
			"OS_DEFAULT__ENABLED_BACKENDS=local:file,web:http", "OS_DEFAULT__SHOW_MULTIPLE_LOCATIONS=true")
	})
}
